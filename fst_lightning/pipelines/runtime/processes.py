"""How the first process of a run tells the others what it found."""

from __future__ import annotations

import functools
import itertools
import os
from datetime import timedelta

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch.distributed import TCPStore  # type: ignore[attr-defined]

_PATIENCE = timedelta(days=14)
"""The first process may wait for another job to train the same model."""

_questions = itertools.count()


def is_first_process() -> bool:
    """Whether this is the process that writes and prints."""
    return getattr(rank_zero_only, "rank", 0) == 0


def started_together() -> bool:
    """Whether a launcher (torchrun, SLURM) started all processes of this run at once.

    The processes that Lightning starts itself come later, when the first one has decided already.
    """
    for environment in (TorchElasticEnvironment, SLURMEnvironment):
        if environment.detect():
            return environment().world_size() > 1
    return False


def agreed(value: bool) -> bool:
    """What the first process says, on all processes that were started together; else the value."""
    if not started_together():
        return value
    distributed = torch.distributed
    if distributed.is_initialized():
        # A second question in one run: Lightning's group is there, and talks through its devices.
        nccl = distributed.get_backend() == "nccl"
        device = torch.device("cuda", torch.cuda.current_device()) if nccl else "cpu"
        said = torch.tensor([int(value)], device=device)
        distributed.broadcast(said, src=0)
        return bool(said.item())
    # No process group for a word: Lightning's own, a moment later, would meet under the same names
    # in the same place, and whoever comes late finds the addresses of the group that is gone.
    store, rank = _blackboard()
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    question = f"fst_lightning/{attempt}/{next(_questions)}"
    if rank == 0:
        store.set(question, str(int(value)))
        return value
    store.wait([question], _PATIENCE)
    return bool(store.get(question) == b"1")


@functools.cache
def _blackboard() -> tuple[TCPStore, int]:
    """Where the first process writes and all read, for as long as this process lives."""
    elastic = TorchElasticEnvironment.detect()
    environment = TorchElasticEnvironment() if elastic else SLURMEnvironment()
    rank = environment.global_rank()
    served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = TCPStore(
        environment.main_address,
        # Not the port that Lightning binds in a moment, unless torchrun serves there already.
        environment.main_port + (0 if served else 1),
        is_master=rank == 0 and not served,
        wait_for_workers=False,
        timeout=_PATIENCE,
    )
    return store, rank
