"""Faulty files end a command with one line, and leave nothing but that line behind."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.hostile import checkpoints, data
from tests.hostile.case import CANARY, Case
from tests.hostile.corpus import KINDS, cases

_EVERY = 12
_OWN = {"failure.json", "traceback.txt", "config.yaml"}


GIVEN = [kind.name for kind in (*checkpoints.KINDS, *data.KINDS)]


def refused() -> Iterator[Case]:
    given = (case for case in cases() if case.kind in GIVEN)
    return (case for case in given if case.says is not None and not case.may_work)


def first_of_each_kind() -> list[Case]:
    first: dict[str, Case] = {}
    for case in refused():
        first.setdefault(case.kind, case)
    assert set(first) == set(GIVEN)
    return list(first.values())


def some() -> Iterator[Case]:
    return itertools.islice((case for case in refused() if not case.heavy), 0, None, _EVERY)


def check(case: Case, command: Command, folder: Path) -> None:
    kind = KINDS[case.kind]
    (folder / "given").mkdir()
    path = folder / "given" / kind.file
    case.write(path)
    given = {str(p.relative_to(folder)) for p in (folder / "given").rglob("*")}
    if kind in checkpoints.KINDS:
        outcome = command(f"checkpoint={path}", "model=small_resnet", "attack=none", *_RUN)
    elif kind is data.TRIGGERED:
        data.FOLDER.write(folder / "images")
        good = ("data=image_folder", f"data.root={folder / 'images'}", "data.image_size=8")
        outcome = command(*good, f"data.triggered_root={path}", *_RUN, task="train")
    else:
        option = "npz" if kind is data.NPZ else "image_folder"
        lines = (f"data={option}", f"data.root={path}", "data.image_size=8")
        outcome = command(*lines, *_RUN, task="train")
    assert outcome.code == 1, outcome.out
    error, hint = outcome.err.splitlines()
    assert error.startswith("error: ")
    assert error.isprintable()
    assert "debug=true" in hint
    assert not outcome.out
    left = {name for name in outcome.written if not name.startswith(("images/", "run/.hydra/"))}
    assert left - given <= {f"run/{name}" for name in _OWN}
    assert not os.path.lexists(folder / CANARY)


_RUN = ("hydra.run.dir=run",)


@pytest.mark.parametrize("case", [pytest.param(c, id=str(c)) for c in first_of_each_kind()])
def test_the_first_fault_of_each_format(case: Case, command: Command, tmp_path: Path) -> None:
    check(case, command, tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("case", [pytest.param(c, id=str(c)) for c in some()])
def test_every_twelfth_fault(case: Case, command: Command, tmp_path: Path) -> None:
    check(case, command, tmp_path)


def test_names_of_classes_are_text_to_terminal_and_page(command: Command, tmp_path: Path) -> None:
    names = ("<img src=x onerror=alert(1)>", "[bold red]${oc.env:HOME}[\\]", "'; touch canary #")
    data.class_folders(tmp_path / "images" / "train", names, each=8)
    data.class_folders(tmp_path / "images" / "test", names, each=4)
    outcome = command(
        *("data=image_folder", f"data.root={tmp_path / 'images'}", "data.image_size=8"),
        *("attack.poison_ratio=0.3", "report.enabled=true", *_RUN),
    )
    assert outcome.code == 0, outcome.err
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page
    assert "${oc.env:HOME}" in page
    assert all(line.isprintable() for line in outcome.out.splitlines())
    assert not os.path.lexists(tmp_path / CANARY)
