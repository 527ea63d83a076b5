"""Whatever a newcomer types, a command succeeds or says in one line what is wrong."""

from __future__ import annotations

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fst_lightning.reports import read_results
from tests.cli.mistakes import Mistake, mistake
from tests.cli.processes import Finished, Started

_SHOWS = ("--help", "--cfg", "--info", "--vers", "-sc", "--shell-completion")
_SIZE = 50


def complaint(case: Mistake, done: Finished, folder: Path) -> str | None:
    """What is wrong with how a command ended; None where nothing is."""
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    results = list(folder.rglob("results.json"))
    if done.code is None:
        return "it did not end"
    if "Traceback" in done.out + done.err:
        return "a traceback"
    if (folder / "store" / "partial").exists() and any((folder / "store/partial").iterdir()):
        return "half a model in the store"
    if done.code == 0:
        shows = any(line.startswith(_SHOWS) for line in case.arguments)
        if errors or not (results or shows):
            return "success, but with an error or without results"
        bad = [error for error in (read_results(file).error for file in results) if error]
        return bad[0] if bad else None
    if len(errors) != 1 or results:
        return f"{len(errors)} lines of error, {len(results)} results"
    if re.match(r"error: [A-Z]\w*(Error|Exception|Mismatch\w*): ", errors[0]):
        return "a message that was not written for users"
    if len(errors[0]) > 800:
        return "a long line"
    words = {word for line in case.arguments for word in re.findall(r"\w{2,}", line)}
    marks = {mark for line in case.arguments for mark in (line, line.partition("=")[2])}
    said = set(re.findall(r"\w{2,}", errors[0])) & words
    if not said and not marks & {word.rstrip(":") for word in errors[0].split()}:
        return "nothing of what was typed is in the message"
    return None


def run(case: Mistake, folder: Path) -> str | None:
    """Run one command; a line about it where it ended badly."""
    folder.mkdir()
    (folder / "text.pt").write_text("not a checkpoint\n", encoding="utf-8")
    done = Started(case.task, list(case.arguments), folder).wait(120)
    found = complaint(case, done, folder)
    shutil.rmtree(folder)
    return found and f"{folder.name}: {found}: {case}\n{done.err[-800:]}"


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
def test_a_command_succeeds_or_says_what_is_wrong(block: int, tmp_path: Path) -> None:
    # Not in the threads: Hydra composes one configuration at a time.
    cases = [(mistake(n), tmp_path / str(n)) for n in range(block * _SIZE, (block + 1) * _SIZE)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(run, *zip(*cases, strict=True)))
    bad = [line for line in found if line]
    assert not bad, "\n".join(bad)


def test_the_same_number_makes_the_same_command() -> None:
    cases = [mistake(seed) for seed in range(12)]
    assert cases == [mistake(seed) for seed in range(12)]
    assert len({str(case) for case in cases}) > 10
    assert {case.task for case in cases} == {"train", "purify", "detect"}
    assert any(case.changed for case in cases)


def test_what_is_wrong_is_seen(tmp_path: Path) -> None:
    """The judge itself: every way to end badly is told from a good one."""
    case = Mistake("purify", ("defense=ftt",), ("defense=ftt",))
    good = Finished(1, "", "error: defense=ftt: no such option. Valid: ft.\n")
    assert complaint(case, good, tmp_path) is None
    for code, err, part in (
        (None, "", "did not end"),
        (1, "Traceback (most recent call last)\nerror: defense", "traceback"),
        (0, "", "without results"),
        (1, "", "0 lines"),
        (1, "error: defense\nerror: defense\n", "2 lines"),
        (1, "error: KeyError: 'defense'\n", "not written for users"),
        (1, "error: it failed\n", "nothing of what was typed"),
        (1, "error: defense" + "x" * 900, "long"),
    ):
        found = complaint(case, Finished(code, "", err), tmp_path)
        assert found is not None
        assert part in found
