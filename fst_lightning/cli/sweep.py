"""A job of a multirun, and the end of it: one table over all of its runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from fst_lightning.cli.failure import explained, report_failure
from fst_lightning.cli.job import Job
from fst_lightning.cli.launch import launcher_problem, run_apart, starts_processes
from fst_lightning.cli.ranks import is_main_process
from fst_lightning.cli.resume import is_finished
from fst_lightning.cli.sweep_folders import shared_folder
from fst_lightning.locks import file_lock


def run_in_sweep(job: Job) -> bool:
    """Run one job of a sweep, unless it is resumed and finished this one before.

    Returns:
        Whether the job came to its end.
    """
    main = is_main_process()
    if main:
        print(f"#{HydraConfig.get().job.num}: {' '.join(job.overrides)}", flush=True)
    with _alone(job.folder) if main else nullcontext():
        if job.cfg.get("resume") is True and is_finished(job.cfg, job.folder):
            if main:
                print("  finished before", flush=True)
            return True
        problem = launcher_problem(HydraConfig.get().launcher, job.cfg)
        if problem is not None:  # The processes are swept: the other jobs may have one each.
            report_failure(ValueError(problem), job.overrides, job.folder)
            return False
        return run_apart(job) if starts_processes(job.cfg) else job.run()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait for a job that outlived its sweep, as those of a launcher's workers do."""
    with ExitStack() as held:
        with suppress(OSError):  # without locks, or the right to write, nobody is waited for
            held.enter_context(file_lock(folder / ".lock"))
        yield


class SweepTable(Callback):
    """Print and write the table over all runs; exit with 1 where a job failed."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a sweep before any job runs: its launcher or its folders do not suit the jobs."""
        try:
            problem = launcher_problem(config.hydra.launcher, config) or shared_folder(config)
        except (HydraException, OmegaConfBaseException) as error:
            problem = explained(error)
        if problem is not None:
            # Hydra swallows exceptions of callbacks; this is no exception to it.
            sys.exit(f"error: {problem}" if is_main_process() else 1)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Summarize the folder of the sweep."""
        if not is_main_process():
            return
        from rich.console import Console

        from fst_lightning.reports import (
            print_line,
            render_sweep,
            summarize_sweep,
            write_leaderboard,
            write_paper_table,
            write_sweep,
        )

        folder = Path(config.hydra.sweep.dir).absolute()
        summary = summarize_sweep(folder)
        write_sweep(summary, folder)
        write_paper_table(summary, folder)
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
