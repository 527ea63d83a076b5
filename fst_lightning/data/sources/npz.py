"""Images in a NumPy archive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fst_lightning.data.archive import Arrays, Header, open_arrays
from fst_lightning.data.images import ImageSet, check_memory
from fst_lightning.data.placement import Placement
from fst_lightning.data.resize import resize_images
from fst_lightning.data.sources.source import Source

_KEYS = ("x_train", "y_train", "x_test", "y_test")


class Npz(Source):
    """A file as `np.savez` writes it, with the arrays `x_train`, `y_train`, `x_test` and `y_test`.

    Images are uint8, or floating-point in [0, 1], of shape (N, H, W, 3), (N, 3, H, W), (N, H, W) or
    with a single channel. Labels are integers from 0, of shape (N,) or (N, 1).

    Args:
        root: The file.
        image_size: Height and width in pixels, at least 1: the center square is resized; None keeps
            the size, which must then be square.
        classes: Class names in the order of their labels; None numbers them.
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
        if isinstance(classes, str):
            raise ValueError(f"Expected `classes` to be a list of names, but got {classes!r}.")
        self.root = Path(root).expanduser()
        self.classes = None if classes is None else tuple(str(name) for name in classes)

    def _load(self) -> tuple[ImageSet, ImageSet, tuple[str, ...]]:
        with open_arrays(self.root, _KEYS) as arrays:
            # From the headers, before anything is read; then the labels, which are small.
            self._check_headers(arrays.headers)
            labels = {part: _read_labels(arrays, f"y_{part}") for part in _PARTS}
            classes = self.classes or _number_classes(labels["train"])
            for part, values in labels.items():
                _check_labels(f"y_{part}", values, len(classes))
            images = {part: self._read_images(arrays, f"x_{part}") for part in _PARTS}
        train, test = (
            ImageSet(images.pop(part).expand(-1, 3, -1, -1).contiguous(), labels[part])
            for part in _PARTS
        )
        return train, test, classes

    def _check_headers(self, headers: Mapping[str, Header]) -> None:
        sizes = {}
        for part in _PARTS:
            name, images, labels = f"x_{part}", headers[f"x_{part}"], headers[f"y_{part}"]
            _check_label_header(f"y_{part}", labels)
            height, width = _channels_first(images.shape, name)[2:]
            if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
                raise ValueError(
                    f"Expected `{name}` to be uint8, or floating-point in [0, 1], "
                    f"but got {images.dtype}."
                )
            if images.shape[0] != labels.shape[0]:
                raise ValueError(
                    f"Expected one label for each image, but `{name}` has {images.shape[0]} images "
                    f"and {labels.shape[0]} labels."
                )
            if self.image_size is None and height != width:
                raise ValueError(
                    f"Expected square images in `{name}`, but they are {height}x{width}. "
                    f"Set `data.image_size` to cut out and resize the center square."
                )
            check_memory(images.shape[0], self.image_size or height)
            sizes[name] = height, width
        if self.image_size is None and len(set(sizes.values())) > 1:
            found = ", ".join(f"{name} {high}x{wide}" for name, (high, wide) in sizes.items())
            raise ValueError(
                f"Expected training and test images of one shape, but got {found}. "
                f"Set `data.image_size` to resize them."
            )

    def _read_images(self, arrays: Arrays, name: str) -> Tensor:
        floating = arrays.headers[name].dtype != np.uint8
        pixels = arrays.read(name, np.uint8, partial(_to_8_bit, name) if floating else None)
        images = torch.from_numpy(pixels)
        if images.ndim == 3:
            images = images[:, None]
        elif images.shape[3] in (1, 3):
            images = images.permute(0, 3, 1, 2)
        return resize_images(images, self.image_size or images.shape[2])


_PARTS = ("train", "test")
_MOST_CLASSES = 100_000


def _channels_first(shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    """The shape (N, C, H, W) of images that are stored in another one."""
    found = (shape[0], 1, *shape[1:]) if len(shape) == 3 else shape
    if len(shape) == 4 and shape[3] in (1, 3):
        found = (shape[0], shape[3], shape[1], shape[2])
    if len(found) != 4 or found[1] not in (1, 3) or 0 in found:
        raise ValueError(
            f"Expected `{name}` of shape (N, H, W, 3), (N, 3, H, W) or (N, H, W), but got {shape}."
        )
    return found


def _to_8_bit(name: str, piece: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    values = piece.astype(np.float64)
    # Written so that NaN fails too.
    if not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(
            f"Expected floating-point `{name}` in [0, 1], but got values from "
            f"{values.min():g} to {values.max():g}. Divide by the largest value, or save uint8."
        )
    rounded: npt.NDArray[np.float64] = np.rint(values * 255)
    return rounded


def _check_label_header(name: str, header: Header) -> None:
    column = len(header.shape) == 2 and header.shape[1] == 1
    flat = len(header.shape) == 1 or column
    if not flat or not np.issubdtype(header.dtype, np.integer) or not header.size:
        raise ValueError(
            f"Expected `{name}` to be integers of shape (N,), "
            f"but got {header.dtype} of shape {header.shape}."
        )


def _read_labels(arrays: Arrays, name: str) -> Tensor:
    def to_int64(piece: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        # uint64 does not fit into int64.
        if int(piece.max()) > np.iinfo(np.int64).max:
            raise ValueError(f"Expected labels that count classes, but `{name}` has {piece.max()}.")
        return piece.astype(np.int64)

    return torch.from_numpy(arrays.read(name, np.int64, to_int64)).flatten()


def _number_classes(labels: Tensor) -> tuple[str, ...]:
    number = int(labels.max()) + 1
    # Looked at first: a single wrong label could ask for more names than fit into memory.
    if number > min(len(labels), _MOST_CLASSES) or not bool(
        labels[labels >= 0].bincount(minlength=number).all()
    ):
        raise ValueError(
            f"Expected an image in `x_train` for each label from 0 to the largest in `y_train`, "
            f"{number - 1}, and at most {_MOST_CLASSES:,} classes. If a class has none on purpose, "
            f"name all classes with `data.classes`."
        )
    return tuple(str(label) for label in range(number))


def _check_labels(name: str, labels: Tensor, num_classes: int) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"Expected labels in [0, {num_classes}), but `{name}` has labels from {low} to {high}."
        )
