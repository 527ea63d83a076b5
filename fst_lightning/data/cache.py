"""Decoded images in a memory-mapped file, with a fingerprint of their sources."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fst_lightning.data.decode import decode_images
from fst_lightning.data.images import TooLargeError
from fst_lightning.locks import NoLocksError, file_lock
from fst_lightning.printable import printable
from fst_lightning.text_files import read_text

_FORMAT = 2
_CHANNELS = 3
_SAMPLES = 512
_SAMPLE_BYTES = 4096
_SAMPLED_EVERY = 251
_SAMPLED_START = 2**16
_MOST_JSON = 10_000
_ELSEWHERE = (
    "Name a folder on another disk with data.cache_folder=DIR, or keep the images in memory with "
    "data.cache=off."
)


def cached_images(paths: Sequence[Path], image_size: int, folder: Path) -> Tensor:
    """Decode files once; later runs map the result into memory, and read what they use of it.

    The fingerprint is over names, sizes and times of change of the files, the content of some of
    them, the image size and the format. The results of other files
    have other names. A result that a crash or a full disk damaged is detected by its length and by
    samples of its content, and decoded again.

    Args:
        paths: The files.
        image_size: Height and width of the result in pixels.
        folder: Folder of the decoded images; created if it is missing.

    Returns:
        uint8 of shape (N, 3, image_size, image_size), in the order of the paths. Writing to it
        does not change the file.

    Raises:
        ValueError: If a file cannot be read; names the first one.
        TooLargeError: If the disk is too small.
        NoLocksError: If the folder's file system has no locks.
    """
    name = fingerprint(paths, image_size)
    shape = (len(paths), _CHANNELS, image_size, image_size)
    size = int(np.prod(shape))
    target, about = folder / f"{name}.images", folder / f"{name}.json"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = file_lock(folder / f"{name}.lock")
    except NoLocksError as error:
        error.add_note(_ELSEWHERE)
        raise
    with lock:  # One process decodes, the others wait for it.
        if not _is_whole(target, about, size):
            _check_disk(folder, size, len(paths))
            _make(paths, image_size, target, about, size)
    return torch.from_file(str(target), shared=False, size=size, dtype=torch.uint8).view(shape)


def fingerprint(paths: Iterable[Path], image_size: int) -> str:
    """A digest of everything that the decoded images depend on: 32 hexadecimal digits.

    The name, size and time of change of every file count, and the start of the content of one file
    in 251. A single image that was replaced by one of the same size and time is not detected.

    Args:
        paths: The files, which exist.
        image_size: Height and width that they are resized to.

    Raises:
        ValueError: If the file no longer exists.
    """
    digest = hashlib.sha256(f"{_FORMAT} {image_size}".encode())
    for number, path in enumerate(paths):
        try:
            status = path.stat()
            if number % _SAMPLED_EVERY == 0:
                with path.open("rb") as file:
                    digest.update(file.read(_SAMPLED_START))
        except OSError as error:
            raise ValueError(
                f"Could not read the image {printable(path)}: {error.strerror}. "
                "Replace or delete the file."
            ) from error
        digest.update(os.fsencode(path.absolute()))
        digest.update(f"\0{status.st_size} {status.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:32]


def _make(paths: Sequence[Path], image_size: int, target: Path, about: Path, size: int) -> None:
    unfinished = target.with_suffix(".unfinished")
    about.unlink(missing_ok=True)
    try:
        with unfinished.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                # Allocate blocks now: a mapped write to a full disk would kill the process.
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
        images = torch.from_file(str(unfinished), shared=True, size=size, dtype=torch.uint8)
        decode_images(
            paths, image_size, into=images.view(-1, _CHANNELS, image_size, image_size), report=True
        )
        del images
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    draft = about.with_suffix(".json.unfinished")
    draft.write_text(json.dumps({"bytes": size, "samples": _samples(target, size)}))
    draft.replace(about)


def _is_whole(target: Path, about: Path, size: int) -> bool:
    try:
        if target.stat().st_size != size:
            return False
        known = json.loads(read_text(about, _MOST_JSON))
        return bool(known == {"bytes": size, "samples": _samples(target, size)})
    except (OSError, ValueError):
        return False


def _samples(target: Path, size: int) -> str:
    """A digest of some hundred places of the file, the last one included."""
    digest = hashlib.sha256()
    with target.open("rb") as file:
        for place in np.linspace(0, max(0, size - _SAMPLE_BYTES), _SAMPLES).astype(int).tolist():
            file.seek(place)
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _check_disk(folder: Path, size: int, count: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise TooLargeError(
            f"{count:,} decoded images need {size / 2**30:.1f} GiB in {folder}, and its disk has "
            f"{free / 2**30:.1f} GiB left",
            f"Lower `data.image_size`. {_ELSEWHERE}",
        )
