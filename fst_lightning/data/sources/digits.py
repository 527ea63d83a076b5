"""Handwritten digits that come with scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from fst_lightning.data.images import ImageSet, check_memory
from fst_lightning.data.placement import Placement
from fst_lightning.data.resize import interpolate
from fst_lightning.data.sources.source import Source
from fst_lightning.data.split import stratified_split
from fst_lightning.validate import check_number

_LARGEST_VALUE = 16
_NUM_IMAGES = 1797
_TEST_FRACTION = 0.2


class Digits(Source):
    """1,797 handwritten digits of 8x8 pixels, enlarged; nothing is downloaded.

    The test part of the UCI "Optical Recognition of Handwritten Digits" data set, as scikit-learn
    ships it: 1,437 images to train, 360 to test.

    Args:
        image_size: Height and width in pixels, at least 1.
        mean: Mean per channel, in units of [0, 1]; None computes it from the training images.
        std: Standard deviation per channel, greater than 0; None computes it from the training
            images.
        crop_padding: Pixels added on each side before a random crop in training; 0 is no crop.
        horizontal_flip: Whether training mirrors half of the images.
        split_seed: Seed of the draw of the test images.
        placement: Memory that holds the images: ``host``, ``device``, or ``auto``, which is a GPU
            if they fit.
        triggered_root: Folder of triggered test images, in folders of their true classes, which
            replace the attack's trigger at test; None for none.
        channels: 3, or 1 for gray images, for networks that take one channel.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> data = Digits(image_size=16).load()
        >>> len(data.train), len(data.test), data.image_shape
        (1437, 360, (3, 16, 16))
    """

    def __init__(
        self,
        *,
        image_size: int = 32,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        crop_padding: int = 2,
        horizontal_flip: bool = False,
        split_seed: int = 0,
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
        check_number("split_seed", split_seed, low=0, whole=True)
        check_memory(_NUM_IMAGES, image_size)
        self._size = image_size
        self.split_seed = split_seed

    def _load(self) -> tuple[ImageSet, ImageSet, tuple[str, ...]]:
        # scikit-learn takes a second to import, which other sources do not need.
        from sklearn.datasets import load_digits

        digits = load_digits()
        gray = torch.from_numpy(digits.images).float().unsqueeze(1) * (255 / _LARGEST_VALUE)
        images = interpolate(gray, self._size).repeat(1, 3, 1, 1)
        labels = torch.from_numpy(digits.target).long()
        rows = ImageSet(images, labels)
        train, test = stratified_split(labels, _TEST_FRACTION, self.split_seed)
        return rows.subset(train), rows.subset(test), tuple(str(digit) for digit in range(10))
