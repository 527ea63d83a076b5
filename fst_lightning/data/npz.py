"""Images in a NumPy archive."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fst_lightning.data.archive import read_arrays
from fst_lightning.data.images import ImageSet, check_memory
from fst_lightning.data.placement import Placement
from fst_lightning.data.resize import resize_images
from fst_lightning.data.source import Source

_CHUNK = 1024
_KEYS = ("x_train", "y_train", "x_test", "y_test")


class Npz(Source):
    """A file as `np.savez` writes it, with the arrays `x_train`, `y_train`, `x_test` and `y_test`.

    Images are uint8, or floating-point in [0, 1], of shape (N, H, W, 3), (N, 3, H, W), (N, H, W)
    or with a single channel. Labels are integers from 0, of shape (N,) or (N, 1).

    Args:
        root: the file.
        image_size: height and width in pixels, at least 1: the centre square is resized; None
            keeps the size, which must then be square.
        classes: class names in the order of their labels; None numbers them.
        mean: per channel, in units of [0, 1]; None is computed from the training images.
        std: per channel, above 0; None is computed from the training images.
        crop_padding: pixels added on each side before a random crop in training; 0 is no crop.
        horizontal_flip: whether training mirrors half of the images.
        placement: where the images lie while they are used: ``host``, ``device``, or ``auto``, on
            a GPU where they fit.
        triggered_root: folder of triggered test images, in folders of their true classes, that
            take the place of an attack's trigger in the measurements; None for none.

    Raises:
        ValueError: for an argument out of its range.
    """

    def __init__(
        self,
        *,
        root: str | Path,
        image_size: int | None = None,
        classes: Sequence[str | int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        crop_padding: int = 0,
        horizontal_flip: bool = False,
        placement: Placement = "auto",
        triggered_root: str | Path | None = None,
    ) -> None:
        super().__init__(
            image_size=image_size,
            mean=mean,
            std=std,
            crop_padding=crop_padding,
            horizontal_flip=horizontal_flip,
            placement=placement,
            triggered_root=triggered_root,
        )
        if isinstance(classes, str):
            raise ValueError(f"Expected `classes` to be a list of names, but got {classes!r}.")
        self.root = Path(root).expanduser()
        self.classes = None if classes is None else tuple(str(name) for name in classes)

    def _load(self) -> tuple[ImageSet, ImageSet, tuple[str, ...]]:
        arrays = read_arrays(self.root, _KEYS)
        labels = {part: _to_labels(f"y_{part}", arrays.pop(f"y_{part}")) for part in _PARTS}
        classes = self.classes or _number_classes(labels["train"])
        for part, values in labels.items():
            _check_labels(f"y_{part}", values, len(classes))
        train, test = (
            ImageSet(
                self._to_images(f"x_{part}", arrays.pop(f"x_{part}"), len(labels[part])),
                labels[part],
            )
            for part in _PARTS
        )
        return train, test, classes

    def _to_images(self, name: str, array: npt.NDArray[np.generic], number: int) -> Tensor:
        channels_first = _channels_first(name, array)
        if len(array) != number:
            raise ValueError(
                f"Expected one label an image, but `{name}` has {len(array)} images "
                f"and {number} labels."
            )
        height, width = channels_first.shape[2:]
        if self.image_size is None and height != width:
            raise ValueError(
                f"Expected square images in `{name}`, but they are {height}x{width}. "
                f"Set `data.image_size` to cut out and resize the centre square."
            )
        check_memory(len(array), self.image_size or height)
        images = torch.from_numpy(_to_8_bit(name, channels_first))
        return resize_images(images, self.image_size or height).expand(-1, 3, -1, -1).contiguous()


_PARTS = ("train", "test")


def _channels_first(name: str, array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    if array.ndim != 4 or array.shape[1] not in (1, 3) or not array.size:
        raise ValueError(
            f"Expected `{name}` of shape (N, H, W, 3), (N, 3, H, W) or (N, H, W), "
            f"but got {array.shape}."
        )
    return array


def _to_8_bit(name: str, array: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array, dtype=np.uint8)
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(
            f"Expected `{name}` to be uint8, or floating-point in [0, 1], but got {array.dtype}."
        )
    pixels = np.empty(array.shape, dtype=np.uint8)
    # In chunks, because the rounded copy is up to eight times the size.
    for start in range(0, len(array), _CHUNK):
        values = array[start : start + _CHUNK].astype(np.float64)
        # Written so that NaN fails too.
        if not (values.min() >= 0 and values.max() <= 1):
            raise ValueError(
                f"Expected floating-point `{name}` in [0, 1], but got values from "
                f"{values.min():g} to {values.max():g}. Divide by the largest value, or save uint8."
            )
        pixels[start : start + _CHUNK] = np.rint(values * 255)
    return pixels


def _to_labels(name: str, array: npt.NDArray[np.generic]) -> Tensor:
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer) or not array.size:
        raise ValueError(
            f"Expected `{name}` to be integers of shape (N,), "
            f"but got {array.dtype} of shape {array.shape}."
        )
    # uint64 does not fit into int64.
    if int(array.max()) > np.iinfo(np.int64).max:
        raise ValueError(f"Expected labels that count classes, but `{name}` has {array.max()}.")
    return torch.from_numpy(array.astype(np.int64))


def _number_classes(labels: Tensor) -> tuple[str, ...]:
    number = int(labels.max()) + 1
    # Looked at first: a single wrong label could ask for more names than fit into memory.
    if number > len(labels) or not bool(labels.clamp(min=0).bincount(minlength=number).all()):
        raise ValueError(
            f"Expected an image in `x_train` for each label from 0 to the largest in `y_train`, "
            f"{number - 1}. If a class has none on purpose, name all classes with `data.classes`."
        )
    return tuple(str(label) for label in range(number))


def _check_labels(name: str, labels: Tensor, num_classes: int) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"Expected labels in [0, {num_classes}), but `{name}` has labels from {low} to {high}."
        )
