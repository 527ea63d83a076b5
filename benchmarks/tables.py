"""Renders the tables of the docs from the records in ``results/``: ``make tables``.

A page names the records and the columns in a comment. The table below it, up to the closing
comment, is generated; a test fails if it and the records disagree::

    <!-- table: digits/*.json | rows: attack.name defense.name | values: after.ca after.asr -->
    ...
    <!-- end of table -->

Records that agree in all ``rows`` are seeds of one setting: a cell shows their mean, with the
sample standard deviation if there are two or more. Rates are in percent.

A path that ends in ``.jsonl`` is a study of the detectors: ``benchmarks.detection_table`` has its
tables.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT

RESULTS = ROOT / "results"
_BLOCK = re.compile(
    r"<!-- table: (?P<spec>.*?) -->\n(?P<table>.*?)<!-- end of table -->", re.DOTALL
)
_RATES = ("ca", "asr", "ra", "o_asr", "p_asr", "ca_before", "ca_after")
_DIGITS = {"der": 3, "p_value": 4}
_TITLES = {
    "attack.name": "attack",
    "attack.poison_ratio": "poison ratio",
    "defense.name": "defense",
    "defense.alpha": "alpha",
    "defense.reinit": "reinit",
    "defense.random_share": "random share",
    "model.name": "network",
    "model.arguments.width": "width",
    "data.name": "data",
    "data.num_clean_tuning": "clean images",
    "tuning.optimizer.lr": "learning rate",
    "before.ca": "CA before",
    "before.asr": "ASR before",
    "before.ra": "RA before",
    "after.ca": "CA after",
    "after.asr": "ASR after",
    "after.ra": "RA after",
    "lost": "CA lost",
    "detection.before.p_value": "p before",
    "detection.after.p_value": "p after",
    "der": "DER",
    "robustness.retuning.o_asr": "ASR before retuning",
    "robustness.retuning.p_asr": "ASR after retuning",
    "robustness.retuning.ca_after": "CA after retuning",
    "seconds.train": "training, s",
    "seconds.purify": "purification, s",
    "peak_memory_mb.train": "peak memory, MiB",
    "peak_memory_mb.purify": "peak memory, MiB",
}
Record = dict[str, Any]


@dataclass(frozen=True)
class Spec:
    """What a table shows.

    Attributes:
        pattern: of the records, below ``results/``.
        rows: keys whose values tell the rows apart.
        values: keys of the figures.
    """

    pattern: str
    rows: tuple[str, ...]
    values: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Read the comment above a table.

        Raises:
            ValueError: If it is not of the form ``PATTERN | rows: KEY ... | values: KEY ...``.

        Example:
            >>> Spec.parse("digits/*.json | rows: defense.name | values: after.ca").rows
            ('defense.name',)
        """
        form = re.fullmatch(r"\s*(\S+)\s*\|\s*rows:\s*(.+?)\s*\|\s*values:\s*(.+?)\s*", text)
        if form is None:
            raise ValueError(
                f"Expected `PATTERN | rows: KEY ... | values: KEY ...`, but got {text!r}."
            )
        return cls(form[1], tuple(form[2].split()), tuple(form[3].split()))


def read_records(pattern: str, folder: Path = RESULTS) -> list[Record]:
    """Read all records whose path below the folder fits the pattern, in the order of their names.

    Raises:
        ValueError: If none does.
    """
    paths = sorted(folder.rglob("*.json"))
    fitting = [p for p in paths if fnmatch.fnmatch(p.relative_to(folder).as_posix(), pattern)]
    if not fitting:
        raise ValueError(f"Expected records that fit {pattern!r} in {folder}, but found none.")
    return [json.loads(path.read_text(encoding="utf-8")) for path in fitting]


def value_of(record: Record, key: str) -> Any:
    """Look up a dotted key; None where a part is missing. ``lost`` is the clean accuracy lost."""
    if key == "lost":
        before, after = value_of(record, "before.ca"), value_of(record, "after.ca")
        return None if before is None or after is None else before - after
    found: Any = record
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def render(spec: Spec, records: Sequence[Record]) -> str:
    """Render the Markdown of a table, with its provenance folded below it."""
    groups: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in records:
        groups[tuple(value_of(record, key) for key in spec.rows)].append(record)
    keys = (*spec.rows, *spec.values)
    lines = [
        "| " + " | ".join(_TITLES.get(key, key) for key in keys) + " |",
        "|" + " --- |" * len(spec.rows) + " ---: |" * len(spec.values),
    ]
    for row, members in sorted(groups.items(), key=lambda item: [_order(x) for x in item[0]]):
        cells = [_label(key, value) for key, value in zip(spec.rows, row, strict=True)]
        cells += [_figure(key, [value_of(r, key) for r in members]) for key in spec.values]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\n" + _provenance(records)


def _order(value: Any) -> tuple[int, float, str]:
    """A key that sorts nothing, numbers and names."""
    if value is None:
        return (0, 0.0, "")
    if isinstance(value, int | float):
        return (1, float(value), "")
    return (2, 0.0, str(value))


def _label(key: str, value: Any) -> str:
    if value is None:
        return "none"
    if key == "attack.poison_ratio":
        return f"{100 * value:g} %"
    if isinstance(value, str):
        return f"`{value}`"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _figure(key: str, values: Sequence[Any]) -> str:
    known = [float(value) for value in values if value is not None]
    if not known:
        return "-"
    is_rate = key.rsplit(".", 1)[-1] in _RATES or key == "lost"
    digits = 2 if is_rate else _DIGITS.get(key.rsplit(".", 1)[-1], 0)
    scale = 100.0 if is_rate else 1.0
    scaled = [scale * value for value in known]
    mean = f"{statistics.fmean(scaled):,.{digits}f}"
    spread = f" ± {statistics.stdev(scaled):,.{digits}f}" if len(scaled) > 1 else ""
    return mean + spread


def _provenance(records: Sequence[Record]) -> str:
    def distinct(key: str) -> str:
        return ", ".join(sorted({str(record[key]) for record in records}))

    seeds = ", ".join(map(str, sorted({record["seed"] for record in records})))
    commits = ", ".join(f"`{commit[:12]}`" for commit in sorted({r["commit"] for r in records}))
    precision = ", ".join(sorted({record["environment"]["precision"] for record in records}))
    commands = sorted({_without_seed(record["command"]) for record in records})
    return "\n".join(
        (
            "<details><summary>Provenance</summary>",
            "",
            f"Seeds {seeds}; commits {commits}; {distinct('hardware')}; precision {precision}; "
            f"runs ended {distinct('date')}.",
            "",
            "```",
            *commands,
            "```",
            "",
            "</details>",
            "",
        )
    )


def _without_seed(command: str) -> str:
    return re.sub(r" seed=\S+", "", command)


def update(text: str, folder: Path = RESULTS) -> str:
    """Return a page with all its tables rendered anew."""

    def replaced(block: re.Match[str]) -> str:
        if ".jsonl" in block["spec"]:
            from benchmarks.detection_table import rendered  # imports torch

            table = rendered(block["spec"], folder)
        else:
            spec = Spec.parse(block["spec"])
            table = render(spec, read_records(spec.pattern, folder))
        return f"<!-- table: {block['spec']} -->\n{table}<!-- end of table -->"

    return _BLOCK.sub(replaced, text)


def pages() -> Iterable[Path]:
    """The pages that may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def main(arguments: Sequence[str] | None = None) -> int:
    """Render all tables; with ``--check`` change nothing and name the pages that are behind."""
    parser = argparse.ArgumentParser(description="Render the tables of the docs from results/.")
    parser.add_argument("--check", action="store_true", help="only report pages that are behind")
    check = parser.parse_args(arguments).check
    behind = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        new = update(text)
        if new != text:
            behind.append(page.relative_to(ROOT).as_posix())
            if not check:
                page.write_text(new, encoding="utf-8")
    print("\n".join(f"{'behind' if check else 'updated'}: {page}" for page in behind), end="\n")
    return int(check and bool(behind))


if __name__ == "__main__":
    sys.exit(main())
