"""What `import fst_lightning` gives, and what it costs."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import fst_lightning
from fst_lightning import (
    attacks,
    callbacks,
    checkpoints,
    data,
    defenses,
    metrics,
    models,
    modules,
    reports,
)
from fst_lightning import pipelines as pipelines_room
from fst_lightning.configuration import conf_folder, groups

ROOMS = [
    attacks,
    callbacks,
    checkpoints,
    data,
    defenses,
    metrics,
    models,
    modules,
    pipelines_room,
    reports,
]


@pytest.mark.parametrize(
    "line",
    [
        "import fst_lightning",
        "from fst_lightning import __version__",
        "import fst_lightning.cli",
        "from fst_lightning.configuration import groups; groups()",
        "import fst_lightning.reports",
        "import fst_lightning; dir(fst_lightning)",
        "import fst_lightning; fst_lightning.list_attacks(); fst_lightning.list_defenses()",
    ],
)
def test_what_needs_no_torch_imports_none(line: str) -> None:
    program = f"import sys; {line}; print([n for n in ('torch', 'lightning') if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=Path(fst_lightning.__file__).parents[1],
    )
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there() -> None:
    for name in fst_lightning.__all__:
        assert getattr(fst_lightning, name) is not None
    assert set(fst_lightning.__all__) <= set(dir(fst_lightning))
    promised = {
        "BackdoorDataModule",
        "BackdoorMetricsCallback",
        "BackdoorModule",
        "DefenseCallback",
        "FSTCallback",
        "PurificationModule",
        "PurifyResult",
        "create_attack",
        "create_defense",
        "list_attacks",
        "list_defenses",
        "purify",
    }
    assert promised <= set(fst_lightning.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = fst_lightning.nonsense


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.__name__)
def test_every_name_of_a_room_is_there_and_sorted_out(room: object) -> None:
    names: list[str] = getattr(room, "__all__")  # noqa: B009
    assert len(names) == len(set(names))
    for name in names:
        assert getattr(room, name) is not None


def test_promised_names_of_rooms() -> None:
    assert {"CleanAccuracy", "AttackSuccessRate", "RobustAccuracy"} <= set(metrics.__all__)
    assert "find_head" in models.__all__
    assert {"FST", "FineTuning"} <= set(defenses.__all__)
    assert {"BadNets", "Blended"} <= set(attacks.__all__)


def test_the_version_is_the_installed_one() -> None:
    try:
        installed = version("fst-lightning")
    except ImportError:
        pytest.skip("not installed")
    assert fst_lightning.__version__ == installed


def test_the_configuration_is_found_beside_the_package() -> None:
    assert (conf_folder() / "train.yaml").is_file()
    assert {"attack", "defense", "data", "model", "tuning", "training", "trainer"} <= set(groups())
    assert "hydra" not in groups()


def test_a_package_without_its_configuration_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from fst_lightning import configuration

    monkeypatch.setattr(configuration, "__file__", str(tmp_path / "package" / "configuration.py"))
    with pytest.raises(FileNotFoundError, match="install the package again"):
        configuration.conf_folder()
