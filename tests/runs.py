"""Makes tiny runs inside the test process, as the command line would."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from fst_lightning.configuration import conf_folder
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
TINY_TUNING = ("tuning.max_epochs=1", "tuning.clean_ratio=0.5")


def composed(task: str, overrides: Sequence[str]) -> DictConfig:
    """Compose a configuration with nothing added to what is asked for."""
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose(task, list(overrides), return_hydra_config=True)


def make_run(task: str, folder: Path, *overrides: str, store: Path | None = None) -> Run:
    """Make a tiny run; what is given wins over what makes it tiny, and counts as given.

    Args:
        task: ``train`` or ``purify``.
        folder: where the run writes.
        overrides: as on the command line.
        store: of backdoored models; None: beside the folder.
    """
    given = {line.lstrip("+~").split("=")[0] for line in overrides}
    tiny = [*TINY, *(TINY_TUNING if task == "purify" else ())]
    # The network's width makes no sense for another network, nor the number of classes elsewhere.
    tiny = [
        line
        for line in tiny
        if line.split("=")[0] not in given
        and not (line.partition("=")[0].partition(".")[0] in given & {"data", "model", "trainer"})
    ]
    plumbing = [f"paths.store={store or folder.parent / 'store'}", f"hydra.run.dir={folder}"]
    cfg = composed(task, [*tiny, *plumbing, *overrides])
    with open_dict(cfg):
        cfg.hydra.runtime.output_dir = str(folder)
        HydraConfig.instance().set_config(cfg)
        choices = dict(cfg.hydra.runtime.choices)
        del cfg["hydra"]
    return Run(cfg, choices, list(overrides), folder)


def results_of(run: Run) -> dict[str, Any]:
    """Run a pipeline and return what it measured."""
    from fst_lightning.pipelines import run_pipeline

    return run_pipeline(run)
