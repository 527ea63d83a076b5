"""The table of docs/security.md is what the corpus gives."""

from __future__ import annotations

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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.skipif(sys.platform != "linux", reason="counts pages as Linux does")
def test_a_refusal_takes_little_memory() -> None:
    rows = measured_corpus()
    for part in rows.values():
        for case, measured in part:
            assert not measured.acts, case
            assert measured.said is None or measured.peak <= MOST, (case, measured.peak)
    measured_lines = [line.rpartition(" | ")[0] for line in table(rows)]
    text = DOCUMENT.read_text(encoding="utf-8")
    assert all(line in text for line in measured_lines)
