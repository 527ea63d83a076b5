"""The faults of disks and downloads: cuts and flipped bits, at places drawn by a seed."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from pathlib import Path

from tests.hostile.case import Case, Kind

_CUTS = 16
_FLIPS = 24


def damaged(kind: Kind, part: str | None = None, *, cuts_may_work: bool = False) -> Iterator[Case]:
    """Cuts and flipped bits over the length of a file.

    Args:
        kind: the format.
        part: the file in the folder, where the format is a folder.
        cuts_may_work: whether a part of the file can be read without the rest.
    """
    draw = random.Random(zlib.crc32(kind.name.encode()))
    label = f" of {part}" if part else ""
    places = [0.0, *(draw.random() for _ in range(_CUTS - 2)), 1.0]
    for number, place in enumerate(sorted(places)):

        def cut(path: Path, place: float = place) -> None:
            kind.write(path)
            file = path / part if part else path
            content = file.read_bytes()
            file.write_bytes(content[: min(int(place * len(content)), len(content) - 1)])

        fault = f"cut {number} of {_CUTS}{label}, at {place:.3f}"
        yield Case(kind.name, fault, cut, "", cuts_may_work)
    for number in range(_FLIPS):
        place, bit = draw.random(), draw.randrange(8)

        def flip(path: Path, place: float = place, bit: int = bit) -> None:
            kind.write(path)
            file = path / part if part else path
            content = bytearray(file.read_bytes())
            content[int(place * len(content))] ^= 1 << bit
            file.write_bytes(content)

        fault = f"flip {number} of {_FLIPS}{label}, at {place:.3f}"
        yield Case(kind.name, fault, flip, "", may_work=True)
