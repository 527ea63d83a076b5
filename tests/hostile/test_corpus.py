"""Every faulty file ends as it must, in this process: no code runs, nothing is left behind."""

from __future__ import annotations

import copyreg
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hostile.case import CANARY, Case, check, outcome
from tests.hostile.corpus import KINDS, cases
from tests.hostile.measure import warm_up
from tests.hostile.pickles import GADGETS, INSTRUCTIONS, UNKNOWN, unpickled
from tests.hostile.watch import watched


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    for number, kind in enumerate(KINDS.values()):
        warm_up(kind, tmp_path_factory.getbasetemp() / f"warm{number}")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("corpus")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("case", [pytest.param(c, id=str(c)) for c in cases() if not c.heavy])
def test_case(case: Case, warm: None, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = KINDS[case.kind]
    folder = place / "case"
    shutil.rmtree(folder, ignore_errors=True)  # of a case that failed
    folder.mkdir()
    monkeypatch.chdir(folder)
    case.write(folder / kind.file)
    there = set(folder.rglob("*"))
    with watched() as tried:
        said = outcome(kind, folder / kind.file)
    check(case, said)
    assert not tried
    assert set(folder.rglob("*")) == there
    assert not os.path.lexists(CANARY)
    shutil.rmtree(folder)


BODIES = {name: body for name, (body, _) in GADGETS.items()} | INSTRUCTIONS | {"unknown": UNKNOWN}


@pytest.mark.parametrize("name", BODIES)
def test_the_code_in_the_corpus_would_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal of a pickle that does nothing would show nothing."""
    monkeypatch.chdir(tmp_path)
    copyreg.add_extension("posix", "mkdir", 0xF0)
    try:
        unpickled(BODIES[name])
    finally:
        copyreg.remove_extension("posix", "mkdir", 0xF0)
    assert os.path.lexists(CANARY)


def test_what_is_watched_is_stopped(tmp_path: Path) -> None:
    acts: list[Callable[[], object]] = [
        lambda: os.system("true"),
        lambda: (tmp_path / "a").mkdir(),
        lambda: (tmp_path / "b").write_text(""),
        lambda: unpickled(GADGETS["os.mkdir"][0]),
    ]
    with watched() as tried:
        for act in acts:
            with pytest.raises(PermissionError):
                act()
        (tmp_path / "c").exists()
    assert len(tried) == len(acts)
    assert not list(tmp_path.iterdir())
