"""The data of a defense: a few clean images, and perhaps a training set to inspect."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Statistics = Sequence[float] | Tensor | None
Data = TypeVar("Data", bound="LabeledImages")


class LabeledImages:
    r"""Images in memory with one label each, and their normalization.

    .. math:: z = (x - \mu) / \sigma, \quad x \in [0, 1]

    Args:
        images: ``(N, C, H, W)``, uint8 or float. Floats are in [0, 1] if ``mean`` and ``std`` are
            given, and otherwise normalized.
        labels: ``(N,)`` int64.
        mean: Mean per channel, of images in [0, 1]; None if the images are normalized.
        std: Standard deviation per channel, greater than 0; None if the images are normalized.
        dtype: Type of the network's input.

    Raises:
        ValueError: If images and labels differ in number, or only one of mean and std is given.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        mean: Statistics = None,
        std: Statistics = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if len(images) != len(labels):
            raise ValueError(
                f"Expected one label per image, but got {len(images)} images "
                f"and {len(labels)} labels."
            )
        if (mean is None) != (std is None):
            raise ValueError(
                f"Expected `mean` and `std` both or neither, but got {mean} and {std}."
            )
        self.images = images
        self.labels = labels
        self.mean = _per_channel(mean, images)
        self.std = _per_channel(std, images)
        self.dtype = dtype

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_images(self) -> int:
        """The number of images."""
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        """The device of the images."""
        return self.images.device

    @property
    def unit(self) -> Tensor:
        """One unit of [0, 1] in normalized units, 1/std: ``(1, C, 1, 1)``; ones if std is unknown.

        Add a perturbation in units of [0, 1] as ``images + delta * unit``.
        """
        if self.std is None:
            shape = (1, self.images.shape[1], 1, 1)
            return torch.ones(shape, dtype=self.dtype, device=self.device)
        return (1 / self.std).to(self.dtype)

    def normalize(self, images: Tensor) -> Tensor:
        """Convert images in [0, 1], or uint8, to the network's input."""
        if images.dtype == torch.uint8:
            images = images.float() / 255
        if self.mean is not None and self.std is not None:
            images = (images - self.mean) / self.std
        return images.to(self.dtype)

    def pixels(self, images: Tensor) -> Tensor:
        """Convert the network's input to [0, 1]; unchanged if no statistics are known."""
        if self.mean is None or self.std is None:
            return images
        return (images * self.std + self.mean).to(images.dtype)

    def batches(
        self, batch_size: int = 128, generator: torch.Generator | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass over the images.

        A shuffled pass drops a last mini-batch of a single image if there are others: BatchNorm
        can't train on it, and another pass will contain that image.

        Args:
            batch_size: Images per mini-batch at most, 1 or more.
            generator: A CPU generator that shuffles; None keeps the order and all images.

        Yields:
            Images ``(n, C, H, W)``, normalized, and labels ``(n,)``.
        """
        count = len(self)
        order = torch.arange(count)
        if generator is not None:
            order = torch.randperm(count, generator=generator)
            if count > batch_size and count % batch_size == 1:
                order = order[:-1]
        order = order.to(self.device)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            yield self.normalize(self.images[rows]), self.labels[rows]

    def subset(self: Data, rows: Tensor) -> Data:
        """The given rows: ``(N,)`` bool, or row numbers."""
        return self._with(self.images[rows.to(self.device)], self.labels[rows.to(self.device)])

    def to(self: Data, device: torch.device | str, dtype: torch.dtype | None = None) -> Data:
        """Move to another device, and set the type of the network's input."""
        moved = self._with(self.images.to(device), self.labels.to(device))
        moved.dtype = self.dtype if dtype is None else dtype
        return moved

    def _with(self: Data, images: Tensor, labels: Tensor) -> Data:
        return type(self)(images, labels, mean=self.mean, std=self.std, dtype=self.dtype)


class PoisonedData(LabeledImages):
    """A training set as it was delivered, perhaps poisoned, with its delivered labels.

    It does not contain which rows were changed. It takes the arguments of :class:`LabeledImages`.

    Example:
        >>> data = PoisonedData(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4))
        >>> data.num_images
        4
    """


class CleanData(LabeledImages):
    """The clean images that a defender holds.

    A defense gets nothing else: no test set, no trigger, and no list of poisoned rows.

    Args:
        images: See :class:`LabeledImages`.
        labels: ``(N,)`` int64, true labels.
        held_out: Clean images that no training step sees, for thresholds and early stopping.
        mean: See :class:`LabeledImages`.
        std: See :class:`LabeledImages`.
        poisoned: The training set as it was delivered, for a defense that needs it.
        dtype: Type of the network's input.

    Example:
        >>> clean = CleanData(torch.rand(10, 3, 8, 8), torch.arange(10) % 2)
        >>> clean = clean.split(0.2, torch.Generator().manual_seed(0))
        >>> clean.num_images, clean.held_out.num_images
        (8, 2)
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        held_out: CleanData | None = None,
        mean: Statistics = None,
        std: Statistics = None,
        poisoned: PoisonedData | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(images, labels, mean, std, dtype)
        self.held_out = held_out
        self.poisoned = poisoned

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> CleanData:
        """Move to another device, with the held-out images and the training set."""
        moved = super().to(device, dtype)
        moved.held_out = None if self.held_out is None else self.held_out.to(device, dtype)
        moved.poisoned = None if self.poisoned is None else self.poisoned.to(device, dtype)
        return moved

    def split(self, share: float, generator: torch.Generator) -> CleanData:
        """Hold out a share of the images, at least one.

        Args:
            share: In [0, 1); 0 holds nothing out.
            generator: A CPU generator.

        Raises:
            ValueError: If that leaves no image to tune on.
        """
        if share == 0:
            return self
        held, kept = held_out_rows(self.num_images, share, generator)
        result = self.subset(kept)
        result.held_out, result.poisoned = self.subset(held), self.poisoned
        return result

    @classmethod
    def gather(
        cls,
        batches: Iterable[tuple[Tensor, Tensor]],
        mean: Statistics = None,
        std: Statistics = None,
    ) -> CleanData:
        """Concatenate the batches ``(images, labels, ...)`` of a loader.

        Raises:
            ValueError: If the loader has no batch.
        """
        images, labels = [], []
        for batch in batches:
            images.append(batch[0])
            labels.append(batch[1])
        if not images:
            raise ValueError("Expected a loader of clean images, but it has no batch.")
        return cls(torch.cat(images), torch.cat(labels), mean=mean, std=std)


def held_out_rows(count: int, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw the rows to hold out and the rows to keep, both ascending.

    Args:
        count: Number of rows.
        share: In (0, 1); rounded, at least one row.
        generator: A CPU generator.

    Raises:
        ValueError: If no row would be kept.
    """
    held = max(1, round(share * count))
    if held >= count:
        raise ValueError(
            f"Expected enough clean images to hold out a share of {share:g}, but got {count}. Give "
            "more, for example with tuning.clean_ratio."
        )
    order = torch.randperm(count, generator=generator)
    return order[:held].sort().values, order[held:].sort().values


def _per_channel(values: Statistics, images: Tensor) -> Tensor | None:
    if values is None:
        return None
    numbers = torch.as_tensor(values, dtype=torch.float32, device=images.device)
    return numbers.reshape(1, -1, 1, 1)
