"""The wheel has everything in it that the commands need."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fst_lightning.reports import read_results
from tests.runs import tiny

ROOT = Path(__file__).parents[1]
SOURCES = (
    "fst_lightning",
    "hydra_plugins",
    "conf",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "train.py",
)

pytestmark = pytest.mark.slow


def call(*arguments: str | Path, cwd: Path, path: Path | None = None) -> str:
    environment = dict(os.environ)
    environment.pop("PYTHONPATH", None)
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left in the checkout."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, folder / "source" / name, ignore=ignore)
        else:
            (folder / "source").mkdir(exist_ok=True)
            shutil.copy(source, folder / "source" / name)
    options = ("--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    call("-m", "pip", "wheel", *options, folder / "source", cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    target = wheel.parent / "target"
    call("-m", "pip", "install", "--no-deps", "--target", target, wheel, cwd=wheel.parent)
    return target


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_has_every_file_of_the_configuration(wheel: Path) -> None:
    prefix = "fst_lightning/conf/"
    packed = {name.removeprefix(prefix) for name in names(wheel) if name.startswith(prefix)}
    conf = ROOT / "conf"
    assert packed == {str(file.relative_to(conf)) for file in conf.rglob("*.yaml")}


def test_has_every_module_the_types_and_nothing_else(wheel: Path) -> None:
    packed = {name for name in names(wheel) if not name.startswith("fst_lightning/conf/")}
    packages = (ROOT / "fst_lightning", ROOT / "hydra_plugins")
    files = [
        file
        for package in packages
        for file in package.rglob("*")
        if file.is_file() and file.suffix != ".pyc"
    ]
    expected = {str(file.relative_to(ROOT)) for file in files}
    assert {name for name in packed if ".dist-info/" not in name} == expected
    assert "fst_lightning/py.typed" in packed
    assert "fst_lightning/reports/results/results.schema.json" in packed
    assert "fst_lightning/reports/html/templates/page.html.j2" in packed
    assert "fst_lightning/reports/charts/fst.mplstyle" in packed
    assert any(name.endswith("licenses/LICENSE") for name in packed)


def test_the_commands_run_from_any_folder(installed: Path, tmp_path: Path) -> None:
    purify = "from fst_lightning.cli import purify; purify()"
    told = call("-c", purify, "--cfg", "job", "attack=blended", cwd=tmp_path, path=installed)
    assert "blend_alpha: 0.2" in told
    assert not list(tmp_path.iterdir())
    lines = [*tiny("purify"), "hydra.run.dir=run"]
    out = call("-c", purify, *lines, cwd=tmp_path, path=installed)
    assert "purified network" in out
    results, error = read_results(tmp_path / "run" / "results.json")
    assert error is None
    assert results is not None
    where = "import fst_lightning; print(fst_lightning.__file__)"
    assert call("-c", where, cwd=tmp_path, path=installed).startswith(str(installed))


def test_the_sweeper_is_found(installed: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    purify = "from fst_lightning.cli import purify; purify()"
    lines = [*tiny("purify"), "hydra.sweep.dir=sweep", "hydra/sweeper=optuna"]
    search = ["-m", "hydra.sweeper.n_trials=1", "defense.alpha=interval(0,1)"]
    out = call("-c", purify, *lines, *search, cwd=tmp_path, path=installed)
    assert "study purify: 1 complete" in out
    where = "import hydra_plugins.fst_lightning_optuna as found; print(found.__file__)"
    assert call("-c", where, cwd=tmp_path, path=installed).startswith(str(installed))


def test_the_scripts_point_to_the_commands(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("entry_points.txt"))
        text = archive.read(name).decode()
    assert "fst-purify = fst_lightning.cli:purify" in text
    assert "fst-train = fst_lightning.cli:train" in text
