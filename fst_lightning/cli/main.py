"""``train.py`` and ``purify.py``: compose the configuration, run the pipeline, say what failed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from hydra.types import RunMode
from omegaconf import DictConfig

from fst_lightning.cli.launch import is_main_process
from fst_lightning.cli.overrides import check_overrides
from fst_lightning.cli.resume import continued_sweep, is_finished
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
    # Hydra shows the folder of the configuration in its messages, so it is given an absolute one.
    hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name=task)(_job)()


def _job(cfg: DictConfig) -> None:
    """Run one job; in a sweep a failing one leaves a note and lets the others run."""
    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir).absolute()
    overrides = list(job.overrides.task)
    in_sweep = job.mode == RunMode.MULTIRUN
    if in_sweep and is_main_process():
        print(f"#{job.job.num}: {' '.join(overrides)}", flush=True)
    try:
        if in_sweep and cfg.resume is True and is_finished(cfg, folder):
            if is_main_process():
                print("  finished before", flush=True)
            return
        from fst_lightning.pipelines import Run, run_pipeline

        run_pipeline(Run(cfg, dict(job.runtime.choices), overrides, folder))
    except Exception as error:
        if cfg.debug:
            raise
        from fst_lightning.cli.failure import report_failure

        report_failure(error, overrides, folder)
        if not in_sweep:
            # Processes that Lightning started for other devices must not wait for this one.
            sys.stdout.flush()
            os._exit(1) if "LOCAL_RANK" in os.environ else sys.exit(1)
