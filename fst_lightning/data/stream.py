"""Images that stay in their files and are decoded each time they are used."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from fst_lightning.data.decode import decode_images


class StreamedImages:
    """Replaces a tensor of images; each image is decoded when its row is selected.

    It replaces a uint8 tensor of shape (N, 3, H, W): `shape`, `len` and so on are those of the
    decoded images, and ``images[rows]`` is an ordinary tensor of these rows, for a number, a slice
    or row numbers. Other tensor operations raise an error, because they would load all images into
    memory.

    Memory is bounded by the rows of one selection and by what the threads decode; processes that
    load batches in parallel share cores and this bound. A file that can't be read is found when its
    row is selected.

    Args:
        paths: The files.
        image_size: Height and width that the images are resized to, in pixels.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from PIL import Image
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder) / "gray.png"
        ...     Image.new("RGB", (9, 9), (128, 128, 128)).save(file)
        ...     images = StreamedImages([file, file, file], image_size=4)
        ...     images.shape, images[torch.tensor([2, 0])].shape, int(images[1].max())
        (torch.Size([3, 3, 4, 4]), torch.Size([2, 3, 4, 4]), 128)
    """

    dtype = torch.uint8
    device = torch.device("cpu")

    def __init__(self, paths: Sequence[Path], image_size: int) -> None:
        self._files = _Paths(paths)
        self._rows = torch.arange(len(paths))
        self._size = image_size
        self._convert: Callable[[Tensor], Tensor] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: Any) -> Tensor:
        """Decode rows: ``(3, H, W)`` for a row's number, otherwise ``(n, 3, H, W)``.

        Raises:
            ValueError: If a file cannot be read; names the first one, and the reason.
            IndexError: If a row does not exist.
        """
        rows = self._rows[key]
        worker = get_worker_info()
        decoded = decode_images(
            [self._files[row] for row in rows.flatten().tolist()],
            self._size,
            processes=1 if worker is None else worker.num_workers,
        )
        if self._convert is not None:
            decoded = self._convert(decoded)
        return decoded.view(*rows.shape, *self.shape[1:])

    def in_gray(self, convert: Callable[[Tensor], Tensor]) -> Tensor:
        """The same images with one channel.

        Args:
            convert: ``(n, 3, H, W)`` to ``(n, 1, H, W)``, called on what was decoded.
        """
        view = copy.copy(self)
        view._convert = convert
        return view.as_tensor()

    def only(self, rows: Tensor) -> Tensor:
        """The given rows, which are streamed as well: nothing is decoded."""
        view = copy.copy(self)
        view._rows = self._rows[rows]
        return view.as_tensor()

    def as_tensor(self) -> Tensor:
        """Itself, typed as a tensor for code that only selects rows."""
        return cast(Tensor, self)

    def paths(self) -> Iterable[Path]:
        """The files, in the order of the rows."""
        return (self._files[row] for row in self._rows.tolist())

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W), with 3 channels, or 1 if the images are gray."""
        channels = 3 if self._convert is None else 1
        return torch.Size((len(self), channels, self._size, self._size))

    @property
    def nbytes(self) -> int:
        """Bytes of all images after decoding."""
        return self.shape.numel()

    def dim(self) -> int:
        """4."""
        return len(self.shape)

    def __getattr__(self, name: str) -> NoReturn:
        _refuse(f"`{name}`")

    @classmethod
    def __torch_function__(cls, function: Any, *_: Any) -> NoReturn:
        _refuse(f"`torch.{getattr(function, '__name__', function)}`")


def _refuse(what: str) -> NoReturn:
    # An AttributeError, so that `hasattr` returns False.
    raise AttributeError(
        f"Expected images in memory for {what}, but these are streamed from their files. Take them "
        "in batches, images[rows]; or make room for them: a smaller data.image_size, or a "
        "data.cache_folder on a larger disk."
    )


class _Paths:
    """Many paths in two objects, which worker processes share; a list would be copied."""

    def __init__(self, paths: Sequence[Path]) -> None:
        names = [os.fsencode(path) for path in paths]
        self._text = b"".join(names)
        self._ends = torch.tensor([0, *map(len, names)]).cumsum(0)

    def __getitem__(self, row: int) -> Path:
        start, end = self._ends[row : row + 2].tolist()
        return Path(os.fsdecode(self._text[start:end]))
