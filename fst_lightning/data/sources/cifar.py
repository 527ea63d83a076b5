"""CIFAR-10 and CIFAR-100."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torchvision import datasets

from fst_lightning.data.images import ImageSet, check_memory
from fst_lightning.data.placement import Placement
from fst_lightning.data.resize import resize_images
from fst_lightning.data.sources.download import explain_missing
from fst_lightning.data.sources.source import Source

_NUM_IMAGES = 60_000
_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"


class _Cifar(Source):
    _name: str
    _folder: str
    _archive: str

    def __init__(
        self,
        *,
        root: str | Path,
        download: bool,
        image_size: int,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        crop_padding: int,
        horizontal_flip: bool,
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
        check_memory(_NUM_IMAGES, image_size)
        self._size = image_size
        self.root = Path(root).expanduser()
        self.download = download

    def _dataset(self) -> Callable[..., Any]:
        raise NotImplementedError

    def _load(self) -> tuple[ImageSet, ImageSet, tuple[str, ...]]:
        by_hand = (
            f"get {self._archive} from {_PAGE} and unpack it, "
            f"so that {self.root / self._folder} exists."
        )
        with explain_missing(self._name, self.root, by_hand):
            parts = [
                self._dataset()(str(self.root), train=train, download=self.download)
                for train in (True, False)
            ]
        train, test = (
            ImageSet(
                resize_images(torch.from_numpy(part.data).permute(0, 3, 1, 2), self._size),
                torch.tensor(part.targets, dtype=torch.int64),
            )
            for part in parts
        )
        return train, test, tuple(parts[0].classes)


class CIFAR10(_Cifar):
    """CIFAR-10: 50,000 training and 10,000 test photographs of 10 classes, 32x32 pixels.

    Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.

    Args:
        root: The folder that holds, or will hold, `cifar-10-batches-py`.
        download: Whether to fetch the files (170 MB) if they are missing.
        image_size: Height and width in pixels, at least 1; images are resized if it is not 32.
        mean: Mean per channel, in units of [0, 1]; None computes it from the training images.
        std: Standard deviation per channel, greater than 0; None computes it from the training
            images.
        crop_padding: Pixels added on each side before a random crop in training; 0 is no crop.
        horizontal_flip: Whether training mirrors half of the images.
        placement: Memory that holds the images: ``host``, ``device``, or ``auto``, which is a GPU
            if they fit.
        triggered_root: Folder of triggered test images, in folders of their true classes, which
            replace the attack's trigger at test; None for none.
        channels: 3, or 1 for gray images, for networks that take one channel.

    Raises:
        ValueError: If an argument is out of its range.
    """

    _name = "CIFAR-10"
    _folder = "cifar-10-batches-py"
    _archive = "cifar-10-python.tar.gz"

    def __init__(
        self,
        *,
        root: str | Path,
        download: bool = True,
        image_size: int = 32,
        mean: Sequence[float] | None = (0.4914, 0.4822, 0.4465),
        std: Sequence[float] | None = (0.247, 0.243, 0.261),
        crop_padding: int = 4,
        horizontal_flip: bool = True,
        placement: Placement = "auto",
        triggered_root: str | Path | None = None,
        channels: int = 3,
    ) -> None:
        super().__init__(
            root=root,
            download=download,
            image_size=image_size,
            mean=mean,
            std=std,
            crop_padding=crop_padding,
            horizontal_flip=horizontal_flip,
            placement=placement,
            triggered_root=triggered_root,
            channels=channels,
        )

    def _dataset(self) -> Callable[..., Any]:
        dataset: Callable[..., Any] = datasets.CIFAR10
        return dataset


class CIFAR100(_Cifar):
    """CIFAR-100: 50,000 training and 10,000 test photographs of 100 classes, 32x32 pixels.

    Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.

    Args:
        root: The folder that holds, or will hold, `cifar-100-python`.
        download: Whether to fetch the files (169 MB) if they are missing.
        image_size: Height and width in pixels, at least 1; images are resized if it is not 32.
        mean: Mean per channel, in units of [0, 1]; None computes it from the training images.
        std: Standard deviation per channel, greater than 0; None computes it from the training
            images.
        crop_padding: Pixels added on each side before a random crop in training; 0 is no crop.
        horizontal_flip: Whether training mirrors half of the images.
        placement: Memory that holds the images: ``host``, ``device``, or ``auto``, which is a GPU
            if they fit.
        triggered_root: Folder of triggered test images, in folders of their true classes, which
            replace the attack's trigger at test; None for none.
        channels: 3, or 1 for gray images, for networks that take one channel.

    Raises:
        ValueError: If an argument is out of its range.
    """

    _name = "CIFAR-100"
    _folder = "cifar-100-python"
    _archive = "cifar-100-python.tar.gz"

    def __init__(
        self,
        *,
        root: str | Path,
        download: bool = True,
        image_size: int = 32,
        mean: Sequence[float] | None = (0.5071, 0.4865, 0.4409),
        std: Sequence[float] | None = (0.2673, 0.2564, 0.2762),
        crop_padding: int = 4,
        horizontal_flip: bool = True,
        placement: Placement = "auto",
        triggered_root: str | Path | None = None,
        channels: int = 3,
    ) -> None:
        super().__init__(
            root=root,
            download=download,
            image_size=image_size,
            mean=mean,
            std=std,
            crop_padding=crop_padding,
            horizontal_flip=horizontal_flip,
            placement=placement,
            triggered_root=triggered_root,
            channels=channels,
        )

    def _dataset(self) -> Callable[..., Any]:
        dataset: Callable[..., Any] = datasets.CIFAR100
        return dataset
