"""Images with their labels, and checks of both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fst_lightning.data.stream import StreamedImages

MAX_BYTES = 16 * 2**30
"""Largest memory of the images of a data set, in bytes."""

MIN_STD = 1e-3
"""Smallest standard deviation computed from images, in units of the [0, 1] range."""

_CHANNELS = 3
_CHUNK = 1024


class TooLargeError(ValueError):
    """Images take more memory, or disk, than there is.

    Args:
        found: Needed and available memory; a clause.
        advice: What to do; a sentence.
    """

    def __init__(self, found: str, advice: str) -> None:
        super().__init__(f"{found}. {advice}")
        self.found = found


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with one label each.

    Args:
        images: Uint8 of shape (N, 3, H, W), RGB, or (N, 1, H, W), gray; or
            :class:`StreamedImages`, which replace such a tensor wherever rows are selected.
        labels: Int64 of shape (N,), each at least 0.

    Raises:
        ValueError: If a dtype or shape is wrong, lengths differ, or a label is negative.

    Example:
        >>> rows = ImageSet(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
        >>> len(rows), rows.subset([1, 3]).labels.tolist()
        (4, [1, 1])
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != torch.uint8:
            raise ValueError(f"Expected `images` to be uint8, but got {images.dtype}.")
        if images.dim() != 4 or images.shape[1] not in (1, _CHANNELS):
            raise ValueError(
                "Expected `images` of shape (N, 3, H, W), or (N, 1, H, W) if gray, but got "
                f"{tuple(images.shape)}."
            )
        if labels.dtype != torch.int64:
            raise ValueError(f"Expected `labels` to be int64, but got {labels.dtype}.")
        if labels.dim() != 1:
            raise ValueError(f"Expected `labels` of shape (N,), but got {tuple(labels.shape)}.")
        if len(images) != len(labels):
            raise ValueError(
                f"Expected one label an image, but got {len(images)} images "
                f"and {len(labels)} labels."
            )
        if len(labels) and int(labels.min()) < 0:
            raise ValueError(f"Expected labels of at least 0, but got {int(labels.min())}.")

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Sequence[int] | Tensor) -> ImageSet:
        """Select the given rows in the given order; streamed images are not decoded.

        Args:
            indices: Row numbers in [0, N), shape (M,).

        Raises:
            IndexError: If a row does not exist.
        """
        rows = torch.as_tensor(indices, dtype=torch.int64, device=self.labels.device)
        if rows.dim() != 1:
            raise ValueError(f"Expected `indices` of shape (M,), but got {tuple(rows.shape)}.")
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(self):
            raise IndexError(
                f"Expected rows in [0, {len(self)}), but got rows "
                f"from {int(rows.min())} to {int(rows.max())}."
            )
        images = self.images
        chosen = images.only(rows) if isinstance(images, StreamedImages) else images[rows]
        return ImageSet(chosen, self.labels[rows])

    @property
    def streamed(self) -> bool:
        """Whether the images are decoded from their files each time they are used."""
        return isinstance(self.images, StreamedImages)

    def in_memory(self, why: str = "") -> ImageSet:
        """These images with a tensor in memory; the same object unless they are streamed.

        Args:
            why: Subject of the error's first sentence: what needs them in memory.

        Raises:
            TooLargeError: If they don't fit.
        """
        if not self.streamed:
            return self
        self.check_memory(why)
        return ImageSet(self.images[:], self.labels)

    def check_memory(self, why: str = "") -> None:
        """Refuse streamed images that :meth:`in_memory` would refuse, before any work is done.

        Args:
            why: Subject of the error's first sentence: what needs them in memory.

        Raises:
            TooLargeError: If they do not fit; says how much memory they need.
        """
        if self.streamed:
            check_memory(len(self), self.images.shape[-1], why)


@dataclass(frozen=True, eq=False)
class ImageData:
    """What a source loads: training and test images, class names, normalization.

    Args:
        train: The training images, at least one.
        test: The test images, at least one, of the same height and width.
        classes: The class names; a label is an index into them. At least 2.
        mean: Per channel, in units of the [0, 1] range.
        std: Per channel, above 0.
        triggered: Test images that already carry a trigger, with their true labels; None if there
            are none.
        changed: ``(N,)`` bool, the training images that an attack is known to have changed, which a
            defender must not use as clean ones; None if unknown.

    Raises:
        ValueError: If a label has no class, image sizes differ, a set is empty, or mean or std
            cannot normalize.
    """

    train: ImageSet
    test: ImageSet
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    triggered: ImageSet | None = None
    changed: Tensor | None = None

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise ValueError(
                f"A classifier needs at least 2 classes, but got {list(self.classes)}."
            )
        if len(set(self.classes)) != self.num_classes:
            raise ValueError("Expected class names that differ from each other.")
        for name, rows in (("training", self.train), ("test", self.test)):
            if not len(rows):
                raise ValueError(f"Expected at least one {name} image, but got none.")
            largest = int(rows.labels.max())
            if largest >= self.num_classes:
                raise ValueError(
                    f"Expected {name} labels below the number of classes "
                    f"({self.num_classes}), but got {largest}."
                )
        if self.train.images.shape[1:] != self.test.images.shape[1:]:
            raise ValueError(
                f"Expected training and test images of one shape, but got "
                f"{tuple(self.train.images.shape[1:])} and {tuple(self.test.images.shape[1:])}."
            )
        channels = self.image_shape[0]
        check_channels("mean", self.mean, channels=channels)
        check_channels("std", self.std, positive=True, channels=channels)

    @property
    def num_classes(self) -> int:
        """Number of classes, those without an image included."""
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of every image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width


def check_channels(
    name: str, values: Sequence[float], *, positive: bool = False, channels: int = _CHANNELS
) -> None:
    """Refuse values that are not one finite number per channel.

    Args:
        name: Name of the values in the error.
        values: Numbers, one per channel.
        positive: Whether they must be above 0.
        channels: Number of channels.

    Raises:
        ValueError: If they are not; says what was found.
    """
    usable = len(values) == channels and all(math.isfinite(value) for value in values)
    if not usable or (positive and min(values) <= 0):
        kind = "positive" if positive else "finite"
        numbers = "one" if channels == 1 else str(channels)
        raise ValueError(
            f"Expected `{name}` to be {numbers} {kind} number{'s' * (channels > 1)}, but got "
            f"{list(values)}."
        )


def to_gray(images: Tensor) -> Tensor:
    r"""Turn red, green and blue into one channel, as Pillow does for its mode ``L``.

    .. math:: L = (19595 R + 38470 G + 7471 B + 2^{15}) / 2^{16}, rounded down

    Args:
        images: Uint8, ``(..., 3, H, W)``.

    Returns:
        uint8, ``(..., 1, H, W)``.

    Example:
        >>> to_gray(torch.tensor([255, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1)).flatten()
        tensor([76], dtype=torch.uint8)
    """
    gray = torch.empty((*images.shape[:-3], 1, *images.shape[-2:]), dtype=torch.uint8)
    flat, result = images.view(-1, *images.shape[-3:]), gray.view(-1, 1, *images.shape[-2:])
    for start in range(0, len(flat), _CHUNK):
        red, green, blue = flat[start : start + _CHUNK].to(torch.int32).unbind(1)
        levels = (red * 19595 + green * 38470 + blue * 7471 + 2**15) >> 16
        result[start : start + _CHUNK, 0] = levels.to(torch.uint8)
    return gray


def check_memory(num_images: int, image_size: int, why: str = "") -> None:
    """Refuse a data set that does not fit into memory, before any work starts.

    Args:
        num_images: Training and test images together.
        image_size: Height and width in pixels.
        why: Subject of the error's first sentence: what needs them in memory.

    Raises:
        TooLargeError: If the images take more than `MAX_BYTES`.
    """
    needed = num_images * _CHANNELS * image_size * image_size
    if needed > MAX_BYTES:
        start = f"{why} needs images in memory, but " if why else ""
        raise TooLargeError(
            f"{start}{num_images:,} images of {image_size}x{image_size} pixels need "
            f"{needed / 2**30:.1f} GiB of memory, and the limit is {MAX_BYTES / 2**30:.0f} GiB",
            "Lower `image_size` or use fewer images.",
        )


def channel_statistics(
    images: Tensor | StreamedImages,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    r"""Mean and standard deviation of each channel over all pixels, in units of [0, 1].

    .. math:: \mu_c = \frac{1}{NHW} \sum x_c / 255, \qquad
        \sigma_c^2 = \frac{1}{NHW} \sum (x_c/255 - \mu_c)^2

    The sums come from a histogram: they are exact, and no float copy of the images is made. The
    standard deviation is at least `MIN_STD`, so that images of one color can be normalized.

    Args:
        images: Uint8 of shape (N, C, H, W), N at least 1; taken in chunks.

    Example:
        >>> channel_statistics(torch.full((2, 3, 4, 4), 255, dtype=torch.uint8))
        ((1.0, 1.0, 1.0), (0.001, 0.001, 0.001))
    """
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    histograms = torch.zeros(images.shape[1], 256, dtype=torch.float64)
    for start in range(0, len(images), _CHUNK):
        chunk = images[
            start : start + _CHUNK
        ]  # once for all channels, because it may have to be decoded
        for channel, counts in enumerate(histograms):
            counts += torch.bincount(chunk[:, channel].flatten(), minlength=256).cpu()
    for counts in histograms:
        weights = counts / counts.sum()
        mean = float(weights @ levels)
        means.append(mean)
        stds.append(max(math.sqrt(float(weights @ (levels - mean) ** 2)), MIN_STD))
    return tuple(means), tuple(stds)
