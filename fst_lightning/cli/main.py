"""``train.py`` and ``purify.py``: compose the configuration, run the pipeline, say what failed."""

from __future__ import annotations

import contextlib
import math
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from hydra.types import RunMode
from omegaconf import DictConfig

from fst_lightning.cli.job import Job, exit_failed
from fst_lightning.cli.launch import is_main_process, started_with_others
from fst_lightning.cli.overrides import check_overrides
from fst_lightning.cli.resume import check_folder, continued_sweep
from fst_lightning.cli.sweep import run_in_sweep
from fst_lightning.configuration import conf_folder


def train() -> None:
    """Run ``train.py``."""
    _run("train")


def purify() -> None:
    """Run ``purify.py``."""
    _run("purify")


def _run(task: str) -> None:
    setup_globals()
    problem = check_overrides(task, sys.argv[1:])
    if problem is not None:
        sys.exit(f"error: {problem}")
    sys.argv += continued_sweep(task, sys.argv[1:])
    if started_with_others():
        problem = check_folder(sys.argv[1:])
        if problem is not None:
            sys.exit(f"error: {problem}")
        if not is_main_process():
            sys.argv.append("hydra.output_subdir=null")
    # Hydra shows the folder of the configuration in its messages, so it is given an absolute one.
    hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name=task)(_job)()


def _job(cfg: DictConfig) -> float | tuple[float, ...]:
    """Run one job; in a sweep a failing one leaves a note and lets the others run.

    Returns:
        The figures that ``objective`` names, for a sweeper that learns from them.
    """
    job = Job.of_hydra(cfg)
    in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    done = run_in_sweep(job) if in_sweep else job.run()
    if not is_main_process():
        # The clock of this process may have named a folder of its own, in which there is nothing.
        with contextlib.suppress(OSError):
            job.folder.rmdir()
    if not (done or in_sweep):
        exit_failed()
    names = [cfg.objective] if isinstance(cfg.objective, str) else list(cfg.objective)
    figures = job.figures(names) if done else (math.nan,) * len(names)
    return figures[0] if len(figures) == 1 else figures
