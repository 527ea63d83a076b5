"""Makes tiny runs inside the test process, as the command line would."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from fst_lightning.cli.composition import composed as compose_with_hydra
from fst_lightning.configuration import conf_folder, drop_unused
from fst_lightning.pipelines import Run

TINY = (
    "data=fake",
    "data.num_classes=3",
    "data.num_train=60",
    "data.num_test=30",
    "data.image_size=8",
    "model=small_resnet",
    "model.width=4",
    "training.max_epochs=1",
    "trainer=cpu",
    "trainer.precision=32-true",
    "logger=none",
)
NO_REPORT = "report.enabled=false"
"""Charts take most of the time of so small a run: a test of the report asks for it."""

TINY_TUNING = ("tuning.max_epochs=1", "tuning.clean_ratio=0.5", "tuning.recipe_images=null")


PACKAGES = {"flare": ("umap", "hdbscan")}
"""What an option needs that the package itself does not bring."""


def skip_without_packages(option: str) -> None:
    """Skip a test where a package is missing; without importing it, which may take seconds."""
    missing = [name for name in PACKAGES.get(option, ()) if find_spec(name) is None]
    if missing:
        pytest.skip(f"{option} needs {', '.join(missing)}")


def option_config(group: str, option: str) -> DictConfig:
    """The keys that the file of an option holds, without the options of others that it chooses."""
    config = OmegaConf.load(conf_folder() / group / f"{option}.yaml")
    assert isinstance(config, DictConfig)
    config.pop("defaults", None)
    return config


def tiny(task: str, overrides: Sequence[str] = ()) -> list[str]:
    """What makes a run tiny, without what the overrides choose themselves."""
    given = {line.lstrip("+~").split("=")[0] for line in overrides}
    lines = [*TINY, NO_REPORT, *(TINY_TUNING if task == "purify" else ())]
    # Another network has no width, other data no number of images: a choice drops its group.
    return [
        line
        for line in lines
        if line.split("=")[0] not in given and line.split("=")[0].split(".")[0] not in given
    ]


def composed(task: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Compose a configuration with nothing added to what is asked for."""
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        cfg = compose_with_hydra(task, overrides)
    cfg.hydra.runtime.cwd = os.getcwd()  # noqa: PTH109 - as Hydra does
    return cfg


def make_run(task: str, folder: Path, *overrides: str, store: Path) -> Run:
    """Make a tiny run; only the overrides count as given on the command line.

    Args:
        task: ``train`` or ``purify``.
        folder: where the run writes.
        overrides: as on the command line.
        store: of backdoored models.
    """
    cfg = composed(task, [*tiny(task, overrides), f"paths.store={store}", *overrides])
    with open_dict(cfg):
        cfg.hydra.run.dir = str(folder)  # Not as an override: Hydra would compose anew.
        cfg.hydra.runtime.output_dir = str(folder)
        HydraConfig.instance().set_config(cfg)
        choices = dict(cfg.hydra.runtime.choices)
        del cfg["hydra"]
    drop_unused(cfg)
    return Run(cfg, choices, list(overrides), folder)
