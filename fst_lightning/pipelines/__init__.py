"""The order of a run, readable top to bottom."""

from __future__ import annotations

from typing import Any

import lightning as L

from fst_lightning.pipelines.checks import check_settings
from fst_lightning.pipelines.memory import keep_freed_memory
from fst_lightning.pipelines.purify import run_purify
from fst_lightning.pipelines.purify_network import PurifyResult, purify
from fst_lightning.pipelines.run import Run
from fst_lightning.pipelines.train import run_train

__all__ = ["PurifyResult", "Run", "purify", "run_pipeline", "run_purify", "run_train"]


def run_pipeline(run: Run) -> dict[str, Any]:
    """Run the task that the configuration names."""
    check_settings(run)
    keep_freed_memory()
    L.seed_everything(run.cfg.seed, verbose=False)
    return run_train(run) if run.cfg.task == "train" else run_purify(run)
