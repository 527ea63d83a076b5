"""Who started this process."""

from __future__ import annotations

import os


def is_main_process() -> bool:
    """Whether Lightning did not start this process for another device, by the same command.

    Known without torch and before any process group: torchrun tells a process its ``RANK``, SLURM
    its ``SLURM_PROCID``, and Lightning its children their ``LOCAL_RANK`` (it sets it to 0 for
    itself).
    """
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
    return next((os.environ[name] for name in names if name in os.environ), "0") == "0"
