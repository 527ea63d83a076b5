"""Files that another process replaces while they are read."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.hostile.case import outcome
from tests.hostile.corpus import KINDS
from tests.hostile.measure import warm_up

_on_open: Callable[[str], None] | None = None
_installed = False


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _on_open is not None and isinstance(arguments[0], str | Path):
        _on_open(os.fspath(arguments[0]))


@contextmanager
def at_open(act: Callable[[str], None]) -> Iterator[None]:
    """Call `act` with the name of every file, just before it is opened."""
    global _on_open, _installed
    if not _installed:
        sys.addaudithook(_hook)
        _installed = True
    _on_open = act
    try:
        yield
    finally:
        _on_open = None


def put(path: Path, kind: str) -> None:
    path.unlink()
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "an endless device":
        path.symlink_to("/dev/zero")
    elif kind == "a huge file":
        with path.open("wb") as file:
            file.truncate(2**40)


REPLACEMENTS = ("a pipe", "an endless device", "a huge file", "nothing")


def files_of(name: str, folder: Path) -> list[Path]:
    """Every file of a good example that is written into a folder."""
    folder.mkdir()
    path = folder / KINDS[name].file
    KINDS[name].write(path)
    return [f for f in sorted(path.rglob("*")) if f.is_file()] if path.is_dir() else [path]


@pytest.fixture(scope="module", params=KINDS)
def name(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    warm_up(KINDS[request.param], tmp_path_factory.mktemp("warm") / "good")
    return str(request.param)


@pytest.mark.parametrize("replacement", REPLACEMENTS)
def test_replaced_after_it_was_looked_at(name: str, replacement: str, tmp_path: Path) -> None:
    """What is opened is checked, not what was there before: no reader waits or fills the memory."""
    count = len(files_of(name, tmp_path / "good"))
    shutil.rmtree(tmp_path / "good")
    for number in range(count):
        file_folder = tmp_path / str(number)
        file = files_of(name, file_folder)[number]
        done: list[str] = []

        def replace(opened: str, file: Path = file, done: list[str] = done) -> None:
            if opened == str(file) and not done:
                done.append(opened)
                put(file, replacement)

        with at_open(replace):
            said = outcome(KINDS[name], file_folder / KINDS[name].file)
        # A folder of the Hub needs no config.json.
        assert said is not None or not done or replacement == "nothing", file
        shutil.rmtree(file_folder)


def test_every_file_is_opened_once(name: str, tmp_path: Path) -> None:
    """Two openings could meet two files, of which one alone was checked."""
    files = {str(file) for file in files_of(name, tmp_path / "good")}
    opened: list[str] = []
    with at_open(lambda path: opened.append(path) if path in files else None):
        assert outcome(KINDS[name], tmp_path / "good" / KINDS[name].file) is None
    shutil.rmtree(tmp_path / "good")
    # The readers of these call two functions, of which each opens the file and checks it.
    twice = name in ("attack.folder", "attack.image", "config.yaml of a run")
    assert len(opened) <= (1 + twice) * len(set(opened))
