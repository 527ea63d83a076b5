"""Lets the first process of a run tell the others what it found."""

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
"""A long time, because the first process may wait for another job that trains the model."""

_questions = itertools.count()


def is_first_process() -> bool:
    """Whether this is the process that writes and prints."""
    return getattr(rank_zero_only, "rank", 0) == 0


def started_together() -> bool:
    """Whether a launcher (torchrun, SLURM) started all processes of this run at once.

    Processes that Lightning starts itself come later, when the first one has decided already.
    """
    for environment in (TorchElasticEnvironment, SLURMEnvironment):
        if environment.detect():
            return environment().world_size() > 1
    return False


def agreed(value: bool) -> bool:
    """The value of the first process if all were started together; otherwise this one's value."""
    if not started_together():
        return value
    distributed = torch.distributed
    if distributed.is_initialized():
        # Lightning's process group exists already and communicates through its devices.
        nccl = distributed.get_backend() == "nccl"
        device = torch.device("cuda", torch.cuda.current_device()) if nccl else "cpu"
        said = torch.tensor([int(value)], device=device)
        distributed.broadcast(said, src=0)
        return bool(said.item())
    # A process group of our own would use the same names in the same store as Lightning's group a
    # moment later, and a late process would read the addresses of the wrong group.
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
    """The store that the first process writes and all read, and the rank of this process."""
    elastic = TorchElasticEnvironment.detect()
    environment = TorchElasticEnvironment() if elastic else SLURMEnvironment()
    rank = environment.global_rank()
    served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = TCPStore(
        environment.main_address,
        # Lightning binds the main port in a moment, unless torchrun serves there already.
        environment.main_port + (0 if served else 1),
        is_master=rank == 0 and not served,
        wait_for_workers=False,
        timeout=_PATIENCE,
    )
    return store, rank
