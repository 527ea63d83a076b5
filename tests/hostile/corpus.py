"""All faulty files that the tests make, and the readers that get them."""

from __future__ import annotations

from collections.abc import Iterator

from tests.hostile import checkpoints, data, texts
from tests.hostile.case import Case, Kind

KINDS: dict[str, Kind] = {
    kind.name: kind for kind in (*checkpoints.KINDS, *data.KINDS, *texts.KINDS)
}


def cases() -> Iterator[Case]:
    """One case at a time: some hold many megabytes."""
    yield from checkpoints.cases()
    yield from data.cases()
    yield from texts.cases()
