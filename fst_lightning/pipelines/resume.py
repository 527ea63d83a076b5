"""Where an interrupted run goes on."""

from __future__ import annotations

from pathlib import Path

import torch

from fst_lightning.checkpoints import read_checkpoint
from fst_lightning.pipelines.finish import is_first_process
from fst_lightning.pipelines.run import Run


def resume_point(run: Run, work: Path, stage: str) -> Path | None:
    """The checkpoint to continue from; None to start anew.

    ``resume=true`` looks where a run of this very configuration keeps its last checkpoint, and
    starts anew where there is none: the run was finished, or had not begun. ``resume=PATH`` names
    a ``.ckpt`` file, or a folder with a ``last.ckpt``.

    Args:
        run: its configuration.
        work: where a run of this configuration keeps its last checkpoint.
        stage: ``train`` or ``tune``, whichever is about to begin.

    Raises:
        FileNotFoundError: where the path holds no checkpoint.
    """
    last = work / "last.ckpt"
    named = named_checkpoint(run)
    # A path means the stage that the command is about; the other one looks for its own checkpoint.
    if named is not None and (stage == "train") == (run.cfg.task == "train"):
        return named
    if not last.is_file():
        if run.cfg.resume is True and is_first_process():
            print(f"{stage}: nothing to continue from in {work}, so it starts anew", flush=True)
        return None
    what = "continues from" if run.cfg.resume else "starts anew; resume=true would continue from"
    if is_first_process():
        print(f"{stage}: {what} {last}", flush=True)
    return last if run.cfg.resume else None


def named_checkpoint(run: Run) -> Path | None:
    """The checkpoint that ``resume=PATH`` names; None for true and false.

    Raises:
        FileNotFoundError: where the path holds no checkpoint.
        CheckpointError: where a file is none of Lightning's, or made to harm.
        ValueError: where a training can't go on from it.
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
    read_checkpoint(path, plain=True)  # before torch.load, which is not as careful
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
