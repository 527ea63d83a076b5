"""One faulty file and what becomes of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CANARY = "canary"
"""What code of a hostile file would make in the working folder."""


@dataclass(frozen=True)
class Case:
    """A fault of a format.

    Attributes:
        kind: the format.
        fault: what is wrong, in a few words.
        write: makes the file, or the folder, at a path.
        says: pattern that the refusal has to show; None where the file works.
        may_work: whether the fault may also be harmless, such as a flipped bit of a pixel.
        heavy: whether it takes more than half a second.
    """

    kind: str
    fault: str
    write: Callable[[Path], object]
    says: str | None = ""
    may_work: bool = False
    heavy: bool = False

    def __str__(self) -> str:
        return f"{self.kind}: {self.fault}"


@dataclass(frozen=True)
class Kind:
    """A format that is read.

    Attributes:
        name: as the table calls it.
        file: what the files are called.
        read: the program's own reader.
        write: makes a good one, for the sweeps over cuts and flipped bits.
    """

    name: str
    file: str
    read: Callable[[Path], object]
    write: Callable[[Path], object]


def outcome(kind: Kind, path: Path) -> str | None:
    """Read a file: None where it works, else the line that says why not.

    Any other end than the program's own errors, which it prints in one line, is raised.
    """
    try:
        kind.read(path)
    except (ValueError, OSError) as error:
        return str(error)
    return None


def check(case: Case, said: str | None) -> None:
    """Raise where the outcome is another than the case wants."""
    if said is None:
        assert case.says is None or case.may_work, f"{case}: was not refused"
        return
    assert case.says is not None, f"{case}: {said}"
    assert re.search(case.says, said), f"{case}: {said}"
    assert said.isprintable(), f"{case}: {said!r}"
    assert len(said) < 1_000, f"{case}: {said}"
    assert said.endswith("."), f"{case} does not say what to do: {said}"
