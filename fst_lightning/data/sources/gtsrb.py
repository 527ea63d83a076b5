"""German traffic signs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import datasets

from fst_lightning.data.images import ImageSet, check_memory
from fst_lightning.data.placement import Placement
from fst_lightning.data.sources.download import explain_missing
from fst_lightning.data.sources.source import Source
from fst_lightning.image_files import open_image

_NUM_CLASSES = 43
_NUM_IMAGES = {"train": 26_640, "test": 12_630}
_PAGE = (
    "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/published-archive.html"
)


class GTSRB(Source):
    """GTSRB: 26,640 training and 12,630 test photographs of 43 traffic signs.

    The images have sizes from 15x15 to 250x250 and are squeezed to a square, as is usual. The
    training part is the one that torchvision uses; some published figures use a larger one of
    39,209 images, which `ImageFolder` can read. Stallkamp et al., "Man vs. computer", Neural
    Networks 32, 2012.

    Args:
        root: The folder that holds, or will hold, `gtsrb`.
        download: Whether to fetch the files (276 MB) if they are missing.
        image_size: Height and width in pixels, at least 1.
        mean: Mean per channel, in units of [0, 1]; None computes it from the training images.
        std: Standard deviation per channel, greater than 0; None computes it from the training
            images.
        crop_padding: Pixels added on each side before a random crop in training; 0 is no crop.
        horizontal_flip: Whether training mirrors half of the images; a mirrored sign can mean
            something else.
        placement: Memory that holds the images: ``host``, ``device``, or ``auto``, which is a GPU
            if they fit.
        triggered_root: Folder of triggered test images, in folders of their true classes, which
            replace the attack's trigger at test; None for none.
        channels: 3, or 1 for gray images, for networks that take one channel.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        *,
        root: str | Path,
        download: bool = True,
        image_size: int = 32,
        mean: Sequence[float] | None = (0.0, 0.0, 0.0),
        std: Sequence[float] | None = (1.0, 1.0, 1.0),
        crop_padding: int = 4,
        horizontal_flip: bool = False,
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
        check_memory(sum(_NUM_IMAGES.values()), image_size)
        self._size = image_size
        self.root = Path(root).expanduser()
        self.download = download

    def _load(self) -> tuple[ImageSet, ImageSet, tuple[str, ...]]:
        by_hand = (
            f"get GTSRB-Training_fixed.zip, GTSRB_Final_Test_Images.zip and "
            f"GTSRB_Final_Test_GT.zip from {_PAGE} and unpack all three in {self.root / 'gtsrb'}."
        )
        with explain_missing("GTSRB", self.root, by_hand):
            train, test = (
                self._read(
                    datasets.GTSRB(str(self.root), split=split, download=self.download), split
                )
                for split in ("train", "test")
            )
        return train, test, tuple(str(label) for label in range(_NUM_CLASSES))

    def _read(self, dataset: Any, split: str) -> ImageSet:
        # torchvision only checks that the folder exists, but unpacking may have been interrupted.
        if len(dataset) < _NUM_IMAGES[split]:
            warnings.warn(
                f"GTSRB in {self.root} has {len(dataset):,} {split} images instead of "
                f"{_NUM_IMAGES[split]:,}. If that is not on purpose, delete "
                f"{self.root / 'gtsrb'} and download it again.",
                stacklevel=2,
            )
        size = self._size
        images = torch.empty(len(dataset), 3, size, size, dtype=torch.uint8)
        labels = torch.empty(len(dataset), dtype=torch.int64)
        pixels = images.numpy()
        # Opened here: torchvision would start Ghostscript for PostScript that is named like a PPM.
        for row, (path, label) in enumerate(dataset._samples):
            with open_image(Path(path)) as image:
                square = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
            pixels[row] = np.asarray(square).transpose(2, 0, 1)
            labels[row] = label
        # torchvision numbers the training folders that are there: a missing one would shift the
        # labels after it, and the test labels would not follow.
        found = int(labels.bincount().count_nonzero())
        if split == "train" and found != _NUM_CLASSES:
            raise RuntimeError(
                f"Expected {_NUM_CLASSES} class folders to train from, but found {found}."
            )
        return ImageSet(images, labels)
