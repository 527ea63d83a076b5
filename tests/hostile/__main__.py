"""Prints the table of docs/security.md: ``python -m tests.hostile``."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.hostile.case import Case
from tests.hostile.corpus import KINDS, cases
from tests.hostile.measure import Measured, measure, warm_up

Rows = dict[str, list[tuple[Case, Measured]]]
HEAD = (
    "| format | files | refused, of those that must be | works, of those that must | may do either "
    "| executed | memory while refusing, MB | memory of what works, MB |\n"
    "|---|---|---|---|---|---|---|---|"
)


def measured_corpus() -> Rows:
    """Every case, each in a process of its own."""
    torch.set_num_threads(1)
    rows: Rows = {name: [] for name in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS.values():
            warm_up(kind, Path(folder, "good"))
        for number, case in enumerate(cases()):
            found = measure(KINDS[case.kind], case, Path(folder, str(number)))
            rows[case.kind].append((case, found))
    return rows


def table(rows: Rows) -> Iterator[str]:
    """The lines of the table."""
    yield from HEAD.splitlines()
    for kind, found in [*rows.items(), ("all", [item for part in rows.values() for item in part])]:
        either = [measured for case, measured in found if case.may_work]
        strict = [(case, measured) for case, measured in found if not case.may_work]
        refused = [m.said is not None for case, m in strict if case.says is not None]
        works = [m.said is None for case, m in strict if case.says is None]
        acts = sum(bool(measured.acts) for _, measured in found)
        peaks = [
            max((m.peak for _, m in found if (m.said is None) == worked), default=0.0)
            for worked in (False, True)
        ]
        yield (
            f"| {kind} | {len(found)} | {sum(refused)} of {len(refused)} | {sum(works)} of "
            f"{len(works)} | {len(either)} | {acts} | {peaks[0]:.0f} | {peaks[1]:.0f} |"
        )


if __name__ == "__main__":
    rows = measured_corpus()
    print("\n".join(table(rows)))
    found = sorted((m.peak, str(c)) for part in rows.values() for c, m in part)[-10:]
    print("\n".join(f"{peak:.0f} MB {case}" for peak, case in reversed(found)), file=sys.stderr)
