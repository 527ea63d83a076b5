"""Starts jobs in separate processes, and ends a process with the one that started it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig

from fst_lightning.cli.failure import has_failure, report_failure
from fst_lightning.cli.job import Job
from fst_lightning.cli.ranks import has_launcher

_PARENT = "FST_LIGHTNING_PARENT"
_GLANCE_SECONDS = 0.1


def starts_processes(cfg: DictConfig) -> bool:
    """Whether Lightning would start processes for the devices of this job.

    It does so by running the command of this process once more for each: in a sweep that would be
    the whole sweep. Processes that torchrun or SLURM started are there already.
    """
    if has_launcher():
        return False
    devices, strategy = cfg.trainer.devices, cfg.trainer.strategy
    single = str(devices) == "1" or (not isinstance(devices, int | str) and len(devices) == 1)
    return not (single and cfg.trainer.num_nodes == 1 and strategy == "auto")


def launcher_problem(launcher: DictConfig, cfg: DictConfig) -> str | None:
    """Explain why a launcher of a sweep cannot run a job; None if it can.

    Ray's workers do not end a job of several processes: the processes wait for each other.

    Args:
        launcher: The launcher's own configuration, ``hydra.launcher``.
        cfg: The configuration of the job.
    """
    if "hydra_ray_launcher" not in str(launcher.get("_target_")) or not starts_processes(cfg):
        return None
    trainer = cfg.trainer
    return (
        "Expected jobs of one process each for hydra/launcher=ray, but got "
        f"trainer.devices={trainer.devices}, trainer.num_nodes={trainer.num_nodes} and "
        f"trainer.strategy={trainer.strategy}: such jobs do not end below Ray. Say "
        "trainer.devices=1 trainer.num_nodes=1 trainer.strategy=auto, or choose another launcher "
        "(hydra/launcher=basic, joblib or submitit_local)."
    )


def run_apart(job: Job) -> bool:
    """Run a job in processes of its own, of which the first one starts the others.

    Their command is ``python -m fst_lightning.cli FOLDER``: whichever process runs it, joins this
    very job. A rank that dies ends its job and nothing else; when this process dies, so do they.

    Returns:
        Whether it came to its end; where not, the folder says why.
    """
    forget = job.save()
    environment = dict(os.environ)
    # They find what this process would, though they were not started from its script's folder.
    environment["PYTHONPATH"] = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    environment[_PARENT] = str(os.getpid())
    command = [sys.executable, "-m", "fst_lightning.cli", str(job.folder)]
    try:
        code = subprocess.run(command, env=environment, check=False).returncode
    finally:
        forget.unlink(missing_ok=True)
    if code == 0:
        return True
    if job.cfg.debug:
        raise RuntimeError(f"The processes of this job ended with {_meaning(code)}.")
    if not has_failure(job.folder):
        died = RuntimeError(f"The processes of this job ended with {_meaning(code)}.")
        report_failure(died, job.overrides, job.folder)
    return False


@contextmanager
def leading() -> Iterator[None]:
    """Tell the processes that are started meanwhile whom to end with."""
    os.environ[_PARENT] = str(os.getpid())
    try:
        yield
    finally:
        del os.environ[_PARENT]


def end_with_parent() -> None:
    """End this process as soon as the one that started it does, however that ends.

    That may have been before this one could look: so it was told whom to look for. One that waits
    for others, or for the device, can't do anything else, but a thread of its own can.
    """
    parent = os.environ.get(_PARENT)

    def watch() -> None:
        while str(os.getppid()) == parent:
            time.sleep(_GLANCE_SECONDS)
        os._exit(1)

    if parent is not None:
        threading.Thread(target=watch, daemon=True).start()


def _meaning(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"status {code}"
