"""Read arrays from a NumPy archive that nobody vouches for."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy_format

from fst_lightning.data.images import MAX_BYTES


def read_arrays(path: Path, keys: Sequence[str]) -> dict[str, npt.NDArray[np.generic]]:
    """Read named arrays; nothing is allocated before all headers have been looked at.

    Args:
        path: a file as `np.savez` or `np.savez_compressed` writes it.
        keys: the names to read; others are left alone.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is not an archive, is damaged, lacks a key, holds Python objects, or
            would take more than 16 GiB.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected a NumPy archive (.npz) at {path}, but found "
            f"{'a folder' if path.is_dir() else 'nothing'}. Set `data.root` to the file."
        )
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a NumPy archive. Write it with `np.savez`.")
    try:
        with zipfile.ZipFile(path) as archive:
            _check_headers(archive, keys)
            # Not `np.load`, which prefers a member `x_train` to the `x_train.npy` that was checked.
            return {key: _read_array(archive, key) for key in keys}
    # zipfile raises RuntimeError for encryption, NotImplementedError for foreign compression.
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"Could not read {path}: {error}") from error


def _check_headers(archive: zipfile.ZipFile, keys: Sequence[str]) -> None:
    found = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    missing = [key for key in keys if key not in found]
    if missing:
        raise ValueError(
            f"it has no array {', '.join(missing)}. Expected {', '.join(keys)}; "
            f"found {', '.join(found) or 'none'}."
        )
    total = 0
    for key in keys:
        shape, dtype = _read_header(archive, key)
        if dtype.hasobject:
            raise ValueError(
                f"`{key}` holds Python objects, and loading those would run code. "
                f"Save it as an array of numbers."
            )
        total += math.prod(shape) * dtype.itemsize
    if total > MAX_BYTES:
        raise ValueError(
            f"its arrays take {total / 2**30:.1f} GiB of memory, and the limit is "
            f"{MAX_BYTES / 2**30:.0f} GiB. Save uint8 images, or fewer of them."
        )


def _read_header(
    archive: zipfile.ZipFile, key: str
) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    with archive.open(f"{key}.npy") as file:
        version = npy_format.read_magic(file)
        if version == (1, 0):
            shape, _, dtype = npy_format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, _, dtype = npy_format.read_array_header_2_0(file)
        else:
            raise ValueError(f"`{key}` is in version {version} of the format, not 1 or 2.")
    if any(length < 0 for length in shape):
        raise ValueError(f"`{key}` has the impossible shape {shape}.")
    return shape, dtype


def _read_array(archive: zipfile.ZipFile, key: str) -> npt.NDArray[np.generic]:
    with archive.open(f"{key}.npy") as file:
        array: npt.NDArray[np.generic] = npy_format.read_array(file, allow_pickle=False)
    return array
