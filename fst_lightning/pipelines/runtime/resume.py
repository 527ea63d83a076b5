"""Finds the checkpoint from which a run resumes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import torch

from fst_lightning.checkpoints import read_checkpoint
from fst_lightning.pipelines.build.run import Run
from fst_lightning.pipelines.runtime.processes import is_first_process

Stage = Literal["train", "tune"]


def resume_point(run: Run, work: Path, stage: Stage) -> Path | None:
    """The checkpoint to continue from; None to start anew.

    ``resume=true`` looks for the last checkpoint of a run with the same configuration. If there is
    none, the run has finished or not begun, and the stage starts anew. ``resume=PATH`` names a
    ``.ckpt`` file, or a folder with a ``last.ckpt``.

    Args:
        run: The run.
        work: The folder in which a run of this configuration keeps its last checkpoint.
        stage: The stage that is about to begin, ``train`` or ``tune``.

    Raises:
        FileNotFoundError: If there is no checkpoint at the path.
    """
    last = work / "last.ckpt"
    named = named_checkpoint(run)
    if named is not None and _is_meant(run, stage):
        return named
    if not last.is_file():
        if run.cfg.resume is True and is_first_process():
            print(f"{stage}: nothing to continue from in {work}, so it starts anew", flush=True)
        return None
    what = "continues from" if run.cfg.resume else "starts anew; resume=true would continue from"
    if is_first_process():
        print(f"{stage}: {what} {last}", flush=True)
    return last if run.cfg.resume else None


def named_digest(run: Run, stage: Stage, own: Path) -> str | None:
    """A digest of the checkpoint that ``resume=PATH`` names for a stage; None without one.

    A model that continues from it differs from that of an uninterrupted run, and so has another
    key.

    Args:
        run: The run.
        stage: ``train`` or ``tune``.
        own: The folder in which an uninterrupted run of this configuration keeps its last
            checkpoint; naming this one means ``resume=true``.
    """
    path = named_checkpoint(run)
    if path is None or not _is_meant(run, stage):
        return None
    if path.resolve() == (own / "last.ckpt").resolve():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_meant(run: Run, stage: Stage) -> bool:
    """Whether ``resume=PATH`` is for this stage, which is that of the command.

    Other stages look for their own checkpoint.
    """
    return bool((stage == "train") == (run.cfg.task == "train"))


def named_checkpoint(run: Run) -> Path | None:
    """The checkpoint that ``resume=PATH`` names; None for true and false.

    Raises:
        FileNotFoundError: If there is no checkpoint at the path.
        CheckpointError: If the file is not a safe Lightning checkpoint.
        ValueError: If a training cannot continue from it.
    """
    resume = run.cfg.resume
    if resume is None or isinstance(resume, bool):
        return None
    path = Path(str(resume))
    path = path / "last.ckpt" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected `resume` to be true, or a checkpoint (.ckpt) or a folder with last.ckpt, "
            f"but there is no file {path}."
        )
    read_checkpoint(path, plain=True)  # before torch.load, which checks less
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        goes_on = isinstance(content, dict) and {"state_dict", "loops"} <= content.keys()
    except Exception:
        goes_on = False
    if not goes_on:
        raise ValueError(
            f"Expected `resume` to be true, or a checkpoint of a training (.ckpt), but {path} "
            "holds weights alone. (Weights to purify are given as checkpoint=FILE.)"
        )
    return path
