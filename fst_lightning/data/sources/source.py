"""Where images come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from fst_lightning.data.images import ImageData, ImageSet, check_channels, to_gray
from fst_lightning.data.placement import Placement
from fst_lightning.data.residency import Cache
from fst_lightning.data.sources.triggered import read_triggered
from fst_lightning.data.statistics import training_statistics
from fst_lightning.data.stream import StreamedImages
from fst_lightning.validate import check_choice, check_number


class Source(ABC):
    """A data set with its normalization and augmentation.

    A subclass implements `_load`.

    Args:
        image_size: Height and width of every image in pixels, at least 1; None keeps the size of
            the images if the subclass supports it.
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

    follow_symlinks = False
    """Whether symbolic links may lead out of a folder of images."""

    cache: Cache = "auto"
    """How images from files are held."""

    cache_folder: Path | None = None
    """The cache folder for later runs; None for none."""

    def __init__(
        self,
        *,
        image_size: int | None = 32,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        crop_padding: int = 0,
        horizontal_flip: bool = False,
        placement: Placement = "auto",
        triggered_root: str | Path | None = None,
        channels: int = 3,
    ) -> None:
        if image_size is not None:
            check_number("image_size", image_size, low=1, whole=True)
        check_number("crop_padding", crop_padding, low=0, whole=True)
        check_choice("placement", placement, Placement)
        self.image_size = image_size
        check_choice("data.channels", channels, (1, 3))
        self.channels = channels
        self.mean = _channels("mean", mean, channels)
        self.std = _channels("std", std, channels, positive=True)
        self.crop_padding = crop_padding
        self.horizontal_flip = horizontal_flip
        self.placement: Placement = placement
        self.triggered_root = None if triggered_root is None else Path(triggered_root).expanduser()
        if self.triggered_root is not None and not self.triggered_root.is_dir():
            raise FileNotFoundError(
                f"Expected `data.triggered_root` to be a folder of triggered test images, but "
                f"{triggered_root} is none."
            )
        self._data: ImageData | None = None
        self._changed: Tensor | None = None

    def load(self) -> ImageData:
        """Load the images; a second call returns the same object."""
        if self._data is None:
            train, test, classes = self._load()
            if self.channels == 1:
                train, test = _gray(train), _gray(test)
            mean, std = self.mean, self.std
            if (mean is None or std is None) and len(train):
                found_mean, found_std = training_statistics(
                    train, self.cache_folder if self.channels == 3 else None
                )
                mean, std = mean or tuple(found_mean), std or tuple(found_std)
            triggered = None
            if self.triggered_root is not None:
                triggered = read_triggered(
                    self.triggered_root,
                    classes,
                    test.images.shape[-1],
                    follow_symlinks=self.follow_symlinks,
                    cache=self.cache,
                )
                triggered = _gray(triggered) if self.channels == 1 else triggered
            self._data = ImageData(
                train, test, classes, mean or (), std or (), triggered, self._changed
            )
        return self._data

    @abstractmethod
    def _load(self) -> tuple[ImageSet, ImageSet, tuple[str, ...]]:
        """Return the training images, the test images and the class names.

        A subclass that knows which training images an attack has changed sets `_changed`.
        """


def _gray(rows: ImageSet) -> ImageSet:
    images = rows.images
    if images.shape[1] == 1:
        return rows
    if isinstance(images, StreamedImages):
        return ImageSet(images.in_gray(to_gray), rows.labels)
    return ImageSet(to_gray(images), rows.labels)


def _channels(
    name: str, values: Sequence[float] | None, channels: int, *, positive: bool = False
) -> tuple[float, ...] | None:
    if values is None:
        return None
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise ValueError(
            f"Expected `{name}` to be null or {channels} numbers, but got {values!r}."
        ) from None
    check_channels(name, numbers, positive=positive, channels=channels)
    return numbers
