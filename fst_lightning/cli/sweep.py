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

        from fst_lightning.reports import (
            print_line,
            render_sweep,
            summarise_sweep,
            write_leaderboard,
            write_sweep,
        )

        folder = Path(config.hydra.sweep.dir).absolute()
        summary = summarise_sweep(folder)
        write_sweep(summary, folder)
        console = Console()
        render_sweep(summary, console)
        try:
            written = f"{'written':<18} {write_leaderboard(summary, folder)}"
            print_line(console, written)
        except Exception as error:  # The table stands, whatever happens to its picture.
            problem = f"{type(error).__name__}: {error}"
            print_line(console, f"warning  leaderboard.html was not written: {problem}")
        if summary.failures:
            # Hydra swallows exceptions of callbacks; this is no exception to it.
            sys.exit(1)
