"""Mean and standard deviation of streamed images, which take a pass over all files to compute."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from fst_lightning.data.cache import fingerprint
from fst_lightning.data.images import ImageSet, channel_statistics, check_channels
from fst_lightning.data.stream import StreamedImages
from fst_lightning.text_files import read_text

Statistics = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation, one number per channel each, in units of the [0, 1] range."""

_MOST_JSON = 1000


def training_statistics(train: ImageSet, folder: Path | None) -> Statistics:
    """Compute mean and standard deviation, for streamed images only once if they can be stored.

    Args:
        train: The training images.
        folder: Folder to store those of streamed images; None does not store them.
    """
    images = train.images
    if not isinstance(images, StreamedImages):
        return channel_statistics(images)
    file = None
    if folder is not None:
        name = fingerprint(images.paths(), images.shape[-1])
        file = folder / f"{name}.statistics.json"
        kept = _read(file)
        if kept is not None:
            return kept
    line = f"data: decodes {len(images):,} images, once, to compute data.mean and data.std"
    rank_zero_only(print)(line, flush=True)
    found = channel_statistics(images)
    if file is not None:
        # A full or read-only disk cannot store them; the next run then computes them again.
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            draft = file.with_suffix(".json.unfinished")
            draft.write_text(json.dumps(found))
            draft.replace(file)
    return found


def _read(file: Path) -> Statistics | None:
    try:
        mean, std = json.loads(read_text(file, _MOST_JSON))
        check_channels("mean", mean)
        check_channels("std", std, positive=True)
    except (OSError, TypeError, ValueError):
        return None
    return mean, std
