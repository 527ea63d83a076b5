"""Rows of uint8 images, loaded as whole mini-batches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler

from fst_lightning.data.images import ImageSet
from fst_lightning.seeds import derived_seed

Batch = tuple[Tensor, ...]
"""Images ``(N, C, H, W)`` uint8, true labels ``(N,)`` int64, poisoned rows ``(N,)`` bool; if the
attack has cover rows, these too, ``(N,)`` bool."""


class Rows(Dataset[Batch]):
    """Training rows; a mini-batch of any size is one gather per tensor.

    Use with a DataLoader whose ``collate_fn`` is :func:`as_gathered`.

    Args:
        data: Images and true labels.
        poisoned: ``(N,)`` bool, which rows get the trigger.
        cover: ``(N,)`` bool, which rows are cover rows; None for none.
        crafted: ``(M, C, H, W)`` uint8, images that replace stored ones.
        crafted_rows: ``(M,)`` int64, the rows that they replace.
    """

    def __init__(
        self,
        data: ImageSet,
        poisoned: Tensor,
        cover: Tensor | None = None,
        crafted: Tensor | None = None,
        crafted_rows: Tensor | None = None,
    ) -> None:
        device = data.images.device
        self.data = data
        columns = (poisoned,) if cover is None else (poisoned, cover)
        self.columns = (data.labels, *(column.to(device) for column in columns))
        self.crafted = None if crafted is None else crafted.to(device)
        place = torch.full((0 if crafted is None else len(data),), -1)
        if crafted_rows is not None:
            place[crafted_rows] = torch.arange(len(crafted_rows))
        self._place = place.to(device)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, row: int) -> Batch:
        return tuple(column[0] for column in self.__getitems__([row]))

    def __getitems__(self, rows: Sequence[int]) -> Batch:
        """Gather a whole batch; the DataLoader calls this instead of one call per row."""
        index = torch.as_tensor(rows).to(self.data.images.device, non_blocking=True)
        images = self.data.images[index]
        if self.crafted is not None:
            place = self._place[index]
            # `where` on whole batches: picking rows would make the host wait for the device.
            crafted = self.crafted[place.clamp(min=0)]
            images = torch.where((place >= 0)[:, None, None, None], crafted, images)
        return images, *(column[index] for column in self.columns)


def as_gathered(batch: Any) -> Any:
    """Return a gathered batch; a function, so that workers can import it."""
    return batch


class Chunks(Dataset[Batch]):
    """Evaluation rows in batches, equally many per process, each row in exactly one.

    A distributed sampler distributes whole batches. Their number is divisible by the number of
    processes, so that nothing is padded, no row counts twice, and all processes do the same number
    of steps.

    Args:
        data: Images and true labels.
        triggered: Whether the rows get the trigger.
        batch_size: Rows per batch at most.
        num_processes: Number of processes.
    """

    def __init__(
        self, data: ImageSet, triggered: bool, batch_size: int, num_processes: int = 1
    ) -> None:
        self.data = data
        self.triggered = triggered
        rounds = math.ceil(len(data) / (batch_size * num_processes))
        self._rows = torch.arange(len(data)).tensor_split(max(1, rounds) * num_processes)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, chunk: int) -> Batch:
        rows = self._rows[chunk]
        # Rows of a chunk are adjacent, so that a slice copies nothing.
        chosen = slice(int(rows[0]), int(rows[-1]) + 1) if len(rows) else slice(0, 0)
        images, labels = self.data.images[chosen], self.data.labels[chosen]
        return images, labels, torch.full((len(rows),), self.triggered, device=images.device)


class EpochShuffle(Sampler[int]):
    """A random order that depends only on seed and epoch, so that a resumed run repeats it.

    Args:
        num_rows: Number of rows.
        seed: Seed of the order; Lightning sets the epoch.
    """

    def __init__(self, num_rows: int, seed: int) -> None:
        self.num_rows = num_rows
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Shuffle as in this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "order", self.epoch))
        return iter(torch.randperm(self.num_rows, generator=generator).tolist())


class ShuffleShare(DistributedSampler[int]):
    """The share of one process in the order of :class:`EpochShuffle`.

    A step of all processes together equals a step of one process with all of their batches. Surplus
    rows are left out in an epoch, so that each process does the same number of steps on as many
    rows.

    Args:
        num_rows: Number of rows.
        seed: Seed of the order; Lightning sets the epoch.
        num_processes: Number of processes.
        rank: Number of this process, from 0.

    Example:
        >>> shares = [list(ShuffleShare(5, 0, 2, rank)) for rank in range(2)]
        >>> whole = list(EpochShuffle(5, 0))
        >>> shares == [[whole[0], whole[2]], [whole[1], whole[3]]]
        True
    """

    def __init__(self, num_rows: int, seed: int, num_processes: int, rank: int) -> None:
        # Lightning keeps a sampler of this class, and would shuffle any other again.
        super().__init__(range(num_rows), num_processes, rank, drop_last=True)  # type: ignore[arg-type]
        self.order = EpochShuffle(num_rows, seed)
        self.num_samples = max(1, num_rows // num_processes)

    def set_epoch(self, epoch: int) -> None:
        """Shuffle as in this epoch."""
        self.order.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        rows = itertools.cycle(self.order)
        return itertools.islice(
            rows, self.rank, self.num_samples * self.num_replicas, self.num_replicas
        )


def training_loader(
    rows: Rows, batch_size: int, order: EpochShuffle | ShuffleShare, **options: Any
) -> DataLoader[Batch]:
    """Shuffled batches, each one gather.

    Args:
        rows: The training rows.
        batch_size: Images per step of this process, 1 or more.
        order: The order of the rows.
        options: Options of the DataLoader.
    """
    return DataLoader(
        rows,
        batch_size=batch_size,
        sampler=order,
        collate_fn=as_gathered,
        # BatchNorm can't train on a single image, and another epoch will contain it.
        drop_last=len(order) > batch_size and len(order) % batch_size == 1,
        **options,
    )
