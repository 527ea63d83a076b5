"""Reads arrays from an untrusted NumPy archive."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy_format

from fst_lightning.checkpoints.errors import Refusal
from fst_lightning.checkpoints.formats.archive import check_directory
from fst_lightning.data.images import MAX_BYTES
from fst_lightning.printable import printable
from fst_lightning.regular_files import length, open_regular

# Limit of the compression ratio: images of one color compress a thousandfold.
_GROWTH_LIMIT = 100
_ALWAYS_ALLOWED = 256 * 2**20
_VALUES_AT_A_TIME = 2**20
_LONGEST_HEADER = 10_000
_MOST_DIMENSIONS = 5


@dataclass(frozen=True)
class Header:
    """The header of an array in an archive.

    Attributes:
        shape: Of the array.
        dtype: Of its values, which are no Python objects.
        fortran: Whether the first dimension varies fastest in the file.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    fortran: bool = False

    @property
    def size(self) -> int:
        """The number of values."""
        return math.prod(self.shape)

    @property
    def memory(self) -> int:
        """Bytes that the values take once they are read; labels become int64."""
        few = len([side for side in self.shape if side > 1]) < 2
        labels = few and np.issubdtype(self.dtype, np.integer)
        return self.size * (8 if labels else self.dtype.itemsize)


class Arrays:
    """Named arrays of a file with checked headers and unread values.

    Attributes:
        headers: Headers by name, in the requested order.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile, headers: dict[str, Header]) -> None:
        self.headers = headers
        self._path = path
        self._archive = archive

    def read(
        self,
        key: str,
        dtype: type[np.generic] | None = None,
        convert: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] | None = None,
    ) -> npt.NDArray[Any]:
        """Read an array in pieces, so that only the result is held completely.

        Args:
            key: Its name.
            dtype: Of the result; None keeps that of the file.
            convert: Gets some values, flat, and returns as many of `dtype`.

        Raises:
            ValueError: If the file is damaged, or what `convert` raises.
        """
        header = self.headers[key]
        values = np.empty(header.size, header.dtype if dtype is None else dtype)
        place = 0
        for piece in self._pieces(key):
            values[place : place + len(piece)] = piece if convert is None else convert(piece)
            place += len(piece)
        return values.reshape(header.shape, order="F" if header.fortran else "C")

    def _pieces(self, key: str) -> Iterator[npt.NDArray[Any]]:
        header = self.headers[key]
        with _explained(self._path), self._archive.open(f"{key}.npy") as file:
            _read_header(file, key)
            left = header.size
            while left:
                count = min(left, _VALUES_AT_A_TIME)
                yield np.frombuffer(file.read(count * header.dtype.itemsize), header.dtype)
                left -= count
            file.read(1)  # compares the checksum


@contextmanager
def open_arrays(path: Path, keys: Sequence[str]) -> Iterator[Arrays]:
    """Open named arrays; all headers are checked before a value is read.

    Args:
        path: A file as `np.savez` or `np.savez_compressed` writes it.
        keys: The names to read; others are left alone.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is not an archive, is damaged, lacks a key, holds Python objects, or
            would take more than 16 GiB, or than 100 times its own length.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected a NumPy archive (.npz) at {path}, but found "
            f"{'a folder' if path.is_dir() else 'nothing'}. Set `data.root` to the file."
        )
    with _explained(path):
        file = open_regular(path)
    with file:
        if not zipfile.is_zipfile(file):
            raise ValueError(f"{path} is not a NumPy archive. Write it with `np.savez`.")
        with _explained(path):
            archive = _opened(file, length(file))
            headers = _check_headers(archive, keys, length(file))
        with archive:
            yield Arrays(path, archive, headers)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    # Damage ends in errors of many types: zipfile's, zlib's, struct's, NotImplementedError.
    except Exception as error:
        reason = printable(error) or type(error).__name__
        advice = "" if reason.endswith(".") else ". Copy or write the file again."
        raise ValueError(f"Could not read {path}: {reason}{advice}") from error


def _opened(file: BinaryIO, size: int) -> zipfile.ZipFile:
    try:
        check_directory(file, size)
    except Refusal as refusal:
        raise ValueError(f"it {refusal.found}. {refusal.advice}.") from None
    return zipfile.ZipFile(file)


def _check_headers(archive: zipfile.ZipFile, keys: Sequence[str], size: int) -> dict[str, Header]:
    names = [entry.filename for entry in archive.infolist()]
    found = [name.removesuffix(".npy") for name in names if name.endswith(".npy")]
    missing = [key for key in keys if key not in found]
    if missing:
        raise ValueError(
            f"it has no array {', '.join(missing)}. Expected {', '.join(keys)}; "
            f"found {', '.join(found[:10]) or 'none'}."
        )
    repeated = [key for key in keys if found.count(key) > 1]
    if repeated:
        raise ValueError(f"it has {', '.join(repeated)} more than once. Write it with `np.savez`.")
    found_headers = {key: _announced(archive, key) for key in keys}
    total = sum(header.memory for header, _ in found_headers.values())
    if total > MAX_BYTES:
        raise ValueError(
            f"its arrays take {total / 2**30:.1f} GiB of memory, and the limit is "
            f"{MAX_BYTES / 2**30:.0f} GiB. Save uint8 images, or fewer of them."
        )
    if total > max(_ALWAYS_ALLOWED, _GROWTH_LIMIT * size):
        raise ValueError(
            f"it is a zip bomb: {size:,} bytes unpack to {total:,}. If the images are real, save "
            f"them with `np.savez`, which does not pack them."
        )
    for key, (header, there) in found_headers.items():
        announced = header.size * header.dtype.itemsize
        if announced != there:
            raise ValueError(
                f"`{key}` announces {announced:,} bytes, and {there:,} follow. Copy or write the "
                f"file again."
            )
    return {key: header for key, (header, _) in found_headers.items()}


def _announced(archive: zipfile.ZipFile, key: str) -> tuple[Header, int]:
    """An array's header, and how many bytes follow it."""
    entry = archive.getinfo(f"{key}.npy")
    with archive.open(entry) as file:
        header = _read_header(file, key)
        start = file.tell()
    if header.dtype.hasobject:
        raise ValueError(
            f"`{key}` holds Python objects, and loading those would run code. "
            f"Save it as an array of numbers."
        )
    plain = all(type(side) is int and side >= 0 for side in header.shape)
    # NumPy counts the bytes of an empty array as well, without its sides of 0.
    plain = plain and (header.size > 0 or math.prod(side or 1 for side in header.shape) < 2**48)
    if not plain or len(header.shape) > _MOST_DIMENSIONS or not header.dtype.itemsize:
        shape = str(header.shape)[:80]
        raise ValueError(f"`{key}` is {header.dtype} of the impossible shape {shape}.")
    return header, entry.file_size - start


def _read_header(file: IO[bytes], key: str) -> Header:
    try:
        version = npy_format.read_magic(file)
    except ValueError:
        raise ValueError(f"`{key}` is no array. Write it with `np.savez`.") from None
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"`{key}` is in version {version} of the format, not 1 or 2.")
    width = 2 if version == (1, 0) else 4
    # NumPy would read all of it before it looks at its length: up to 4 GiB, packed in a few MB.
    if int.from_bytes(file.read(width), "little") > _LONGEST_HEADER:
        raise ValueError(f"`{key}` has a header of more than {_LONGEST_HEADER:,} bytes.")
    file.seek(-width, 1)
    read = npy_format.read_array_header_1_0 if width == 2 else npy_format.read_array_header_2_0
    try:
        shape, fortran, dtype = read(file)
    # NumPy gives the text to Python's parser, whose errors are of many types: tokenize's,
    # RecursionError, MemoryError.
    except Exception:
        raise ValueError(f"`{key}` has a damaged header. Copy or write the file again.") from None
    return Header(shape, dtype, fortran)
