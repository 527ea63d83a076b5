"""Checks the loaders that `purify` is given, and makes them readable in every epoch."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from fst_lightning.modules.batches import bounded, images_and_labels

_EXAMPLE = "DataLoader(dataset, batch_size=128, shuffle=True)"


def readable_again(loader: Any, name: str) -> Iterable[Any]:
    """Return a loader that gives its batches in every pass.

    A loader and a list of batches do so already. An iterator gives its batches once, so it is read
    into memory.

    Args:
        loader: Batches of images and labels.
        name: Its name in errors.

    Raises:
        TypeError: If it is not a loader.
        TooLargeError: If an iterator's images do not fit into memory.
    """
    if isinstance(loader, L.LightningDataModule):
        loader.prepare_data()
        loader.setup("fit")
        loader = loader.train_dataloader()
    if isinstance(loader, Tensor) or (
        isinstance(loader, list | tuple) and any(isinstance(part, Tensor) for part in loader)
    ):
        raise TypeError(
            f"Expected `{name}` to give batches of images and labels, but got tensors. Pass "
            f"{_EXAMPLE} with dataset = TensorDataset(images, labels)."
        )
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
        raise TypeError(
            f"Expected `{name}` to give batches, but got a data set, {type(loader).__name__}. Pass "
            f"{_EXAMPLE}."
        )
    if isinstance(loader, Iterator):
        loader = list(bounded(loader))
    if isinstance(loader, list | tuple):
        # Lightning would take it for several loaders.
        return DataLoader(loader, batch_size=None)  # type: ignore[arg-type]
    if not (isinstance(loader, Iterable) or hasattr(loader, "__getitem__")):
        raise TypeError(
            f"Expected `{name}` to give batches, but got {type(loader).__name__}. Pass {_EXAMPLE}."
        )
    return cast(Iterable[Any], loader)


def first_batch(loader: Iterable[Any], name: str) -> tuple[tuple[Tensor, Tensor], Iterable[Any]]:
    """Read the first batch without changing the loader or the random numbers.

    Args:
        loader: See :func:`readable_again`.
        name: Its name in errors.

    Returns:
        Images and labels, and the loader to continue with.

    Raises:
        ValueError: If there is no batch.
    """
    with _random_states_kept(loader):
        batches = iter(loader)
        batch = next(batches, None)
    if batch is None:
        raise ValueError(
            f"Expected `{name}` to give at least one batch, but it gives none. Is the data "
            "set empty, or smaller than a batch with drop_last=True?"
        )
    if _starts_anew(loader):
        return images_and_labels(batch), loader
    return images_and_labels(batch), _Started(loader, itertools.chain([batch], batches))


class _Started:
    """A loader whose first pass has begun, because it may not be able to begin it twice."""

    def __init__(self, loader: Iterable[Any], batches: Iterator[Any]) -> None:
        self.loader = loader
        self._batches: Iterator[Any] | None = batches

    def __iter__(self) -> Iterator[Any]:
        # A generator, so that nothing is read until the first batch: Lightning tries `iter` once.
        begun, self._batches = self._batches, None
        yield from self.loader if begun is None else begun

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]


def _starts_anew(loader: Iterable[Any]) -> bool:
    """Whether every pass begins at the first row, even after an unfinished one."""
    return isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)


@contextmanager
def _random_states_kept(loader: Iterable[Any]) -> Iterator[None]:
    samplers = [loader, getattr(loader, "sampler", None)]
    samplers.append(getattr(getattr(loader, "batch_sampler", None), "sampler", None))
    generators = {getattr(sampler, "generator", None) for sampler in samplers}
    own = [(g, g.get_state()) for g in generators if isinstance(g, torch.Generator)]
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for generator, state in own:
            generator.set_state(state)
