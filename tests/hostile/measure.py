"""Reads a faulty file in a process that may hardly grow, and measures how far it does."""

from __future__ import annotations

import json
import os
import resource
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.hostile.case import CANARY, Case, Kind, check, outcome
from tests.hostile.watch import watched

_GROWTH = 2 * 2**30
_SECONDS = 120


@dataclass(frozen=True)
class Measured:
    """What became of a case in a process of its own.

    Attributes:
        said: the refusal; None where the file works.
        peak: most memory above what the process had before, in MB (10^6 bytes).
        acts: what the file tried to do to the machine.
    """

    said: str | None
    peak: float
    acts: list[str]


def warm_up(kind: Kind, folder: Path) -> None:
    """Read a good file once, so that what is imported late counts for no case."""
    folder.mkdir()
    kind.write(folder / kind.file)
    kind.read(folder / kind.file)
    shutil.rmtree(folder)


def measure(kind: Kind, case: Case, folder: Path) -> Measured:
    """Write the file here and read it in a fork; Linux alone counts memory in this way.

    Raises:
        AssertionError: where the outcome is not what the case wants, or files were left.
    """
    folder.mkdir()
    path = folder / kind.file
    case.write(path)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            os.chdir(folder)
            with os.fdopen(writer, "wb") as found:
                found.write(json.dumps(_read(kind, path)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        answer = file.read()
    _, status = os.waitpid(child, 0)
    assert answer, f"{case}: the process died ({status})"
    measured = Measured(**json.loads(answer))
    check(case, measured.said)
    left = {file.name for file in folder.iterdir()} - {kind.file}
    assert not left, f"{case} left {left}"
    assert not os.path.lexists(folder / CANARY), case
    shutil.rmtree(folder)
    return measured


def _read(kind: Kind, path: Path) -> dict[str, object]:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    before = _status("VmRSS")
    most = _status("VmSize") + _GROWTH
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    try:
        with watched() as acts:
            said = outcome(kind, path)
    except BaseException as error:
        said = f"{type(error).__name__} escapes: {error}"
    return {"said": said, "peak": (_status("VmHWM") - before) / 1e6, "acts": acts}


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (line,) = [line for line in lines if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024
