"""How the first process of a run tells the others what it found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment


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
    with _group() as device:
        said = torch.tensor([int(value)], device=device)
        torch.distributed.broadcast(said, src=0)
        return bool(said.item())


@contextmanager
def _group() -> Iterator[torch.device]:
    """A process group for a word; gone afterwards, so that Lightning makes its own."""
    distributed = torch.distributed
    if distributed.is_initialized():
        # A second question in one run: Lightning's group is there, and talks through its devices.
        nccl = distributed.get_backend() == "nccl"
        yield torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
        return
    # The first process may wait for another job to train the same model.
    options: dict[str, Any] = {"timeout": timedelta(days=14)}
    if not TorchElasticEnvironment.detect():
        environment = SLURMEnvironment()
        # Its own port: Lightning binds this one again in a moment.
        address = f"tcp://{environment.main_address}:{environment.main_port + 1}"
        options |= {
            "init_method": address,
            "rank": environment.global_rank(),
            "world_size": environment.world_size(),
        }
    distributed.init_process_group("gloo", **options)
    try:
        yield torch.device("cpu")
    finally:
        distributed.destroy_process_group()
