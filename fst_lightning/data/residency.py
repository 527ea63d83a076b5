"""Decides whether decoded images are held in memory, in the cache, or streamed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from fst_lightning.data.cache import cached_images
from fst_lightning.data.decode import decode_images
from fst_lightning.data.images import TooLargeError, check_memory
from fst_lightning.data.stream import StreamedImages

Cache = Literal["auto", "off", "stream"]
"""``auto``: large sets are kept in the cache, small ones in memory, and what has no room there is
streamed. ``off``: in memory, or refused. ``stream``: streamed, whatever room there is."""

MIN_FILES = 5000
"""Fewer files are decoded again in every run: that takes about a second."""


def held_images(
    parts: Sequence[Sequence[Path]], image_size: int, cache: Cache, folder: Path | None
) -> list[Tensor]:
    """Hold the images of several sets of files, each where there is room.

    Args:
        parts: The files of each set.
        image_size: Height and width to resize to, in pixels.
        cache: See :data:`Cache`.
        folder: Of the cache; None for none.

    Returns:
        For each set uint8 of shape (N, 3, image_size, image_size), or :class:`StreamedImages`,
        which stand for that.

    Raises:
        ValueError: If a file cannot be read; names the first one.
        TooLargeError: with ``off``, if the images don't fit into memory.
    """
    held: dict[int, Tensor] = {}
    reasons: list[str] = []
    if cache == "auto" and folder is not None:
        for part, paths in enumerate(parts):
            if len(paths) >= MIN_FILES:
                try:
                    held[part] = cached_images(paths, image_size, folder)
                except TooLargeError as error:
                    reasons.append(error.found)
    rest = {part: paths for part, paths in enumerate(parts) if part not in held}
    if cache != "stream":
        try:
            check_memory(sum(map(len, rest.values())), image_size)
            held |= {part: decode_images(paths, image_size) for part, paths in rest.items()}
        except TooLargeError as error:
            if cache == "off":
                raise
            why = "; ".join([*reasons, error.found])
            line = f"data: {why}: they are streamed, decoded whenever they are needed"
            rank_zero_only(print)(line, flush=True)
    for part, paths in rest.items():
        if part not in held:
            held[part] = StreamedImages(paths, image_size).as_tensor()
    return [held[part] for part in range(len(parts))]
