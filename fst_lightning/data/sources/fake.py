"""Generated images, for quick tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from fst_lightning.data.images import ImageSet, check_memory
from fst_lightning.data.placement import Placement
from fst_lightning.data.sources.source import Source
from fst_lightning.validate import check_number

_PATTERN_SIZE = 4
_CONTRAST = 0.2
_NOISE = 0.1
_CHUNK = 256


class Fake(Source):
    """A smooth random pattern per class with noise, which any network learns in an epoch or two.

    `x = clamp(0.5 + 0.2 * pattern[y] + 0.1 * noise, 0, 1)`, the pattern drawn on a 4x4 grid and
    enlarged, both from N(0, 1). All classes have the same number of images, up to one.

    Args:
        num_classes: At least 2.
        num_train: Number of training images, at least 1.
        num_test: Number of test images, at least 1.
        image_size: Height and width in pixels, at least 1.
        mean: Mean per channel, in units of [0, 1]; None computes it from the training images.
        std: Standard deviation per channel, greater than 0; None computes it from the training
            images.
        crop_padding: Pixels added on each side before a random crop in training; 0 is no crop.
        horizontal_flip: Whether training mirrors half of the images.
        seed: Seed of patterns, noise and labels; the same seed gives the same images.
        placement: Memory that holds the images: ``host``, ``device``, or ``auto``, which is a GPU
            if they fit.
        triggered_root: Folder of triggered test images, in folders of their true classes, which
            replace the attack's trigger at test; None for none.
        channels: 3, or 1 for gray images, for networks that take one channel.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> data = Fake(num_classes=3, num_train=30, num_test=6, image_size=8).load()
        >>> data.train.labels.bincount().tolist(), data.image_shape
        ([10, 10, 10], (3, 8, 8))
    """

    def __init__(
        self,
        *,
        num_classes: int = 10,
        num_train: int = 512,
        num_test: int = 256,
        image_size: int = 32,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        crop_padding: int = 0,
        horizontal_flip: bool = False,
        seed: int = 0,
        placement: Placement = "auto",
        triggered_root: str | Path | None = None,
        channels: int = 3,
    ) -> None:
        super().__init__(
            image_size=image_size,
            mean=mean,
            std=std,
            crop_padding=crop_padding,
            horizontal_flip=horizontal_flip,
            placement=placement,
            triggered_root=triggered_root,
            channels=channels,
        )
        check_number("num_classes", num_classes, low=2, whole=True)
        check_number("num_train", num_train, low=1, whole=True)
        check_number("num_test", num_test, low=1, whole=True)
        check_number("seed", seed, low=0, whole=True)
        # The patterns are float32: they count four times.
        check_memory(num_train + num_test + 4 * num_classes, image_size)
        self.num_classes = num_classes
        self.num_train = num_train
        self.num_test = num_test
        self.seed = seed
        self._size = image_size

    def _load(self) -> tuple[ImageSet, ImageSet, tuple[str, ...]]:
        generator = torch.Generator().manual_seed(self.seed)
        grid = torch.randn(self.num_classes, 3, _PATTERN_SIZE, _PATTERN_SIZE, generator=generator)
        patterns = functional.interpolate(
            grid, size=(self._size, self._size), mode="bilinear", align_corners=False
        )
        train = self._draw(patterns, self.num_train, generator)
        test = self._draw(patterns, self.num_test, generator)
        return train, test, tuple(str(label) for label in range(self.num_classes))

    def _draw(self, patterns: Tensor, number: int, generator: torch.Generator) -> ImageSet:
        labels = torch.randperm(number, generator=generator) % self.num_classes
        images = torch.empty(number, *patterns.shape[1:], dtype=torch.uint8)
        for start in range(0, number, _CHUNK):
            rows = slice(start, start + _CHUNK)
            clean = 0.5 + _CONTRAST * patterns[labels[rows]]
            noise = torch.randn(clean.shape, generator=generator)
            images[rows] = ((clean + _NOISE * noise).clamp(0, 1) * 255).round().to(torch.uint8)
        return ImageSet(images, labels)
