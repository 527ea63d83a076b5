"""The end of a multirun: one table over all of its runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from fst_lightning.cli.launch import is_main_process


class SweepTable(Callback):
    """Print and write the table over all runs; exit with 1 where a job failed."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Summarise the folder of the sweep."""
        if not is_main_process():
            return
        from rich.console import Console

        from fst_lightning.reports import render_sweep, summarise_sweep, write_sweep

        folder = Path(config.hydra.sweep.dir).absolute()
        summary = summarise_sweep(folder)
        write_sweep(summary, folder)
        render_sweep(summary, Console())
        if summary.failures:
            # Hydra swallows exceptions of callbacks; this is no exception to it.
            sys.exit(1)
