"""Which of the processes of a job this one is, known without torch and before a process group."""

from __future__ import annotations

import os

# torchrun tells a process its RANK, SLURM its SLURM_PROCID, and Lightning its children their
# LOCAL_RANK (it sets it to 0 for itself).
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")


def is_main_process() -> bool:
    """Whether this is the first process: Lightning did not start it for another device."""
    return next((os.environ[name] for name in _RANKS if name in os.environ), "0") == "0"


def started_with_others() -> bool:
    """Whether torchrun or SLURM started several processes of this command at once."""
    return int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", 1))) > 1


def has_launcher() -> bool:
    """Whether torchrun, SLURM or Lightning started this process."""
    return any(name in os.environ for name in (*_RANKS, "SLURM_NTASKS"))
