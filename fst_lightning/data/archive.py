"""Read arrays from a NumPy archive that nobody vouches for."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy_format

from fst_lightning.checkpoints.archive import check_directory
from fst_lightning.checkpoints.errors import Refusal
from fst_lightning.data.images import MAX_BYTES
from fst_lightning.printable import printable

# What a few bytes may unpack to: images of one colour pack a thousandfold.
_GROWTH_LIMIT = 100
_ALWAYS_ALLOWED = 256 * 2**20
_LONGEST_HEADER = 10_000
_MOST_DIMENSIONS = 5


def read_arrays(path: Path, keys: Sequence[str]) -> dict[str, npt.NDArray[np.generic]]:
    """Read named arrays; nothing is allocated before all headers have been looked at.

    Args:
        path: a file as `np.savez` or `np.savez_compressed` writes it.
        keys: the names to read; others are left alone.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is not an archive, is damaged, lacks a key, holds Python objects, or
            would take more than 16 GiB, or than 100 times its own length.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected a NumPy archive (.npz) at {path}, but found "
            f"{'a folder' if path.is_dir() else 'nothing'}. Set `data.root` to the file."
        )
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a NumPy archive. Write it with `np.savez`.")
    length = path.stat().st_size
    try:
        with path.open("rb") as file, _opened(file, length) as archive:
            _check_headers(archive, keys, length)
            # Not `np.load`, which prefers a member `x_train` to the `x_train.npy` that was checked.
            return {key: _read_array(archive, key) for key in keys}
    # Damage ends in errors of many types: zipfile's, zlib's, struct's, NotImplementedError.
    except Exception as error:
        reason = printable(error) or type(error).__name__
        advice = "" if reason.endswith(".") else ". Copy or write the file again."
        raise ValueError(f"Could not read {path}: {reason}{advice}") from error


def _opened(file: BinaryIO, length: int) -> zipfile.ZipFile:
    try:
        check_directory(file, length)
    except Refusal as refusal:
        raise ValueError(f"it {refusal.found}. {refusal.advice}.") from None
    return zipfile.ZipFile(file)


def _check_headers(archive: zipfile.ZipFile, keys: Sequence[str], length: int) -> None:
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
    sizes = {key: _announced(archive, key) for key in keys}
    total = sum(announced for announced, _ in sizes.values())
    if total > MAX_BYTES:
        raise ValueError(
            f"its arrays take {total / 2**30:.1f} GiB of memory, and the limit is "
            f"{MAX_BYTES / 2**30:.0f} GiB. Save uint8 images, or fewer of them."
        )
    if total > max(_ALWAYS_ALLOWED, _GROWTH_LIMIT * length):
        raise ValueError(
            f"it is a zip bomb: {length:,} bytes unpack to {total:,}. If the images are real, save "
            f"them with `np.savez`, which does not pack them."
        )
    for key, (announced, there) in sizes.items():
        if announced != there:
            raise ValueError(
                f"`{key}` announces {announced:,} bytes, and {there:,} follow. Copy or write the "
                f"file again."
            )


def _announced(archive: zipfile.ZipFile, key: str) -> tuple[int, int]:
    """How many bytes an array takes by its header, and how many follow the header."""
    entry = archive.getinfo(f"{key}.npy")
    with archive.open(entry) as file:
        shape, dtype = _read_header(file, key)
        start = file.tell()
    if dtype.hasobject:
        raise ValueError(
            f"`{key}` holds Python objects, and loading those would run code. "
            f"Save it as an array of numbers."
        )
    plain = all(type(side) is int and side >= 0 for side in shape)
    if not plain or len(shape) > _MOST_DIMENSIONS or not dtype.itemsize:
        raise ValueError(f"`{key}` is {dtype} of the impossible shape {str(shape)[:80]}.")
    return math.prod(shape) * dtype.itemsize, entry.file_size - start


def _read_header(file: IO[bytes], key: str) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
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
        shape, _, dtype = read(file)
    # NumPy gives the text to Python's parser, whose errors are of many types: tokenize's,
    # RecursionError, MemoryError.
    except Exception:
        raise ValueError(f"`{key}` has a damaged header. Copy or write the file again.") from None
    return shape, dtype


def _read_array(archive: zipfile.ZipFile, key: str) -> npt.NDArray[np.generic]:
    with archive.open(f"{key}.npy") as file:
        array: npt.NDArray[np.generic] = npy_format.read_array(file, allow_pickle=False)
    return array
