"""The table of docs/security.md is what the corpus gives."""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from pathlib import Path

import pytest

from tests.hostile.__main__ import HEAD, measured_corpus, table
from tests.hostile.corpus import KINDS, cases

DOCUMENT = Path(__file__).parents[2] / "docs/security.md"
MOST = 500.0  # MB


def documented() -> list[list[str]]:
    text = DOCUMENT.read_text(encoding="utf-8")
    lines = text[text.index(HEAD) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_counts_the_corpus() -> None:
    count = dict.fromkeys(KINDS, 0)
    refusals, works, either = dict(count), dict(count), dict(count)
    for case in cases():
        count[case.kind] += 1
        kind = either if case.may_work else works if case.says is None else refusals
        kind[case.kind] += 1
    *rows, total = documented()
    assert [row[:6] for row in rows] == [
        [
            name,
            str(count[name]),
            f"{refusals[name]} of {refusals[name]}",
            f"{works[name]} of {works[name]}",
            str(either[name]),
            "0",
        ]
        for name in KINDS
    ]
    assert total[1] == str(sum(count.values()))
    assert all(float(row[6]) <= MOST for row in [*rows, total])


def test_every_place_that_content_reaches_has_a_guard_and_a_test() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    part = text.partition("## What guards each place")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| .* \| `([\w.]+)` \| `([\w/]+\.py)::(\w+)` \|$", part, re.MULTILINE)
    assert len(rows) == part.count("\n| ") - 1  # all but the head
    for guard, file, test in rows:
        found: object = None
        for place in range(guard.count("."), 0, -1):
            module, names = guard.split(".")[:place], guard.split(".")[place:]
            with contextlib.suppress(ModuleNotFoundError):
                found = importlib.import_module(f"fst_lightning.{'.'.join(module)}")
                for name in names:
                    found = getattr(found, name)
                break
        assert callable(found), guard
        assert f"def {test}(" in (DOCUMENT.parents[1] / file).read_text(encoding="utf-8"), test


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.skipif(sys.platform != "linux", reason="counts pages as Linux does")
def test_a_refusal_takes_little_memory() -> None:
    rows = measured_corpus()
    for part in rows.values():
        for case, measured in part:
            assert not measured.acts, case
            assert measured.said is None or measured.peak <= MOST, (case, measured.peak)
    measured_lines = [line.rsplit(" | ", 2)[0] for line in table(rows)]
    text = DOCUMENT.read_text(encoding="utf-8")
    assert all(line in text for line in measured_lines)
