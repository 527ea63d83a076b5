"""The three commands: compose the configuration, run the pipeline, say what failed."""

from __future__ import annotations

import contextlib
import io
import math
import os
import sys
from typing import TYPE_CHECKING

from fst_lightning.cli.ranks import is_main_process, started_with_others
from fst_lightning.cli.stopping import end_process, stoppable

if TYPE_CHECKING:
    from collections.abc import Callable

    from omegaconf import DictConfig


def train() -> None:
    """Run ``train.py``."""
    with stoppable("train", sys.argv[1:]):
        _run("train")


def purify() -> None:
    """Run ``purify.py``."""
    with stoppable("purify", sys.argv[1:]):
        _run("purify")


def detect() -> None:
    """Run ``detect.py``."""
    with stoppable("detect", sys.argv[1:]):
        _run("detect")


def _run(task: str) -> None:
    """Run a command; whatever goes wrong before a job ends in one line."""
    completes = "COMP_LINE" in os.environ
    if completes:  # What is half typed is no mistake: the shell shows suggestions, or none.
        sys.stderr = io.StringIO()
    try:
        _start(task)
    except BrokenPipeError:  # of a reader like head; what Python still flushes goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        # Of a folder, a YAML, a plugin: a job explains its own failures.
        from fst_lightning.cli.failure import explained

        if completes:
            sys.exit(1)
        if "debug=true" in sys.argv:
            raise
        sys.exit(f"error: {explained(error)}")


def _start(task: str) -> None:
    # Here, not at the top: importing Hydra takes a moment, in which a signal may come as well.
    import hydra
    from hydra.core.utils import setup_globals

    from fst_lightning.cli.flags import read_flags
    from fst_lightning.cli.launch import end_with_parent, leading
    from fst_lightning.cli.overrides import check_overrides
    from fst_lightning.cli.own_network import (
        import_from_here,
        names_network,
        with_own_arguments,
    )
    from fst_lightning.cli.paths import with_quoted_paths
    from fst_lightning.cli.resume import check_folder, continued_sweep
    from fst_lightning.configuration import conf_folder

    if not is_main_process():
        end_with_parent()
    setup_globals()
    if names_network(sys.argv[1:]):
        sys.argv[1:] = with_own_arguments(sys.argv[1:])
        import_from_here()
    sys.argv[1:] = with_quoted_paths(sys.argv[1:])
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
    run = hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name=task)(_job)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # It would print a traceback, or parts of one.
    if read_flags(sys.argv[1:]).help:
        _help(task, run)
    else:
        with leading():
            run()


def _help(task: str, run: Callable[[], None]) -> None:
    """Print what Hydra says to ``--help``, with the meaning of each key."""
    from hydra.core.hydra_config import HydraConfig

    from fst_lightning.cli.meanings import with_meanings

    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        run()
    print(with_meanings(said.getvalue(), task, HydraConfig.get().runtime.choices), flush=True)


def _job(cfg: DictConfig) -> float | tuple[float, ...]:
    """Run one job; in a sweep a failing one leaves a note and lets the others run.

    Returns:
        The figures that ``objective`` names, for a sweeper that learns from them.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from fst_lightning.cli.job import Job
    from fst_lightning.cli.sweep import run_in_sweep

    job = Job.of_hydra(cfg)
    in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    done = run_in_sweep(job) if in_sweep else job.run()
    if not is_main_process():
        # The clock of this process may have named a folder of its own, in which there is nothing.
        with contextlib.suppress(OSError):
            job.folder.rmdir()
    if not (done or in_sweep):
        end_process(1)
    if done and not in_sweep and job.is_refused():
        end_process(3)
    wanted = cfg.get("objective")
    names = [str(name) for name in (wanted if OmegaConf.is_list(wanted) else [wanted])]
    figures = job.figures(names) if done else (math.nan,) * len(names)
    return figures[0] if len(figures) == 1 else figures
