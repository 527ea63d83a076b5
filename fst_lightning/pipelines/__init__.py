"""The sequence of a run, readable top to bottom: train, purify, detect."""

from __future__ import annotations

from typing import Any

import lightning as L

from fst_lightning.pipelines.build.checks import check_settings
from fst_lightning.pipelines.build.run import Run
from fst_lightning.pipelines.detect import run_detect
from fst_lightning.pipelines.purify import run_purify
from fst_lightning.pipelines.purify_network import PurifyResult, purify
from fst_lightning.pipelines.runtime.memory import keep_freed_memory
from fst_lightning.pipelines.train import run_train

__all__ = [
    "PurifyResult",
    "Run",
    "purify",
    "run_detect",
    "run_pipeline",
    "run_purify",
    "run_train",
]

_TASKS = {"train": run_train, "purify": run_purify, "detect": run_detect}


def run_pipeline(run: Run) -> dict[str, Any]:
    """Run the task that the configuration names."""
    check_settings(run)
    keep_freed_memory()
    L.seed_everything(run.cfg.seed, verbose=False)
    return _TASKS[run.cfg.task](run)
