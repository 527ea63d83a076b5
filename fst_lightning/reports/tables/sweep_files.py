"""The table over a sweep as files: CSV, Markdown, LaTeX and JSON."""

import csv
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from fst_lightning.printable import printable, printable_line
from fst_lightning.reports.results.files import write_json, write_text
from fst_lightning.reports.results.sweep import VALUES, SweepSummary
from fst_lightning.reports.results.sweep_text import (
    failure_line,
    shared_lines,
    sweep_notes,
    table_rows,
)

Cell = str | int | float | bool | None


def write_sweep(summary: SweepSummary, folder: str | os.PathLike[str]) -> list[Path]:
    """Write `table.csv`, `.md`, `.json`, `.tex` (a line an experiment) and `runs.csv` (one a run).

    Fractions stay in [0, 1] in CSV and JSON; Markdown and LaTeX, for people, have percentages.

    Args:
        summary: the sweep.
        folder: where to write; made where there is none, older files are replaced.

    Returns:
        The five paths.
    """
    folder = Path(folder)
    names = ("table.csv", "table.md", "table.json", "runs.csv", "table.tex")
    paths = [folder / name for name in names]
    write_text(paths[0], _csv(_group_rows(summary)))
    write_text(paths[1], _markdown(summary))
    write_json(paths[2], _json(summary))
    write_text(paths[3], _csv(_run_rows(summary)))
    write_text(paths[4], _latex(summary))
    return paths


def _group_rows(summary: SweepSummary) -> Iterable[Sequence[Cell]]:
    names = _setting_names(summary)
    spreads = [f"{name}.{part}" for name in VALUES for part in ("mean", "std", "n")]
    yield [*names, "n", "seeds", "not_implanted", *spreads]
    for group in summary.groups:
        numbers: list[Cell] = []
        for name in VALUES:
            spread = group.values[name]
            numbers += [spread.mean, spread.std, spread.n]
        settings = [group.settings.get(name) for name in names]
        seeds = " ".join(map(str, group.seeds))
        yield [*settings, group.n, seeds, group.not_implanted, *numbers]


def _run_rows(summary: SweepSummary) -> Iterable[Sequence[Cell]]:
    names = _setting_names(summary)
    yield [
        "job",
        "status",
        "seed",
        *names,
        "implanted",
        "shortfalls",
        *VALUES,
        "error",
        "overrides",
        "log",
    ]
    for run in summary.runs:
        settings = [run.settings.get(name) for name in names]
        values = [run.values[name] for name in VALUES]
        facts = [run.job, "finished", run.seed, *settings, run.implanted, "; ".join(run.shortfalls)]
        yield [*facts, *values, None, None, None]
    for failure in summary.failures:
        blank = [None] * (1 + len(names) + 2 + len(VALUES))
        asked = " ".join(failure.overrides)
        yield [failure.job, "failed", *blank, failure.line, asked, failure.log]


def _setting_names(summary: SweepSummary) -> list[str]:
    return list(dict.fromkeys(name for group in summary.groups for name in group.settings))


def _csv(rows: Iterable[Sequence[Cell]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([_harmless(cell) for cell in row] for row in rows)
    return text.getvalue()


def _harmless(cell: Cell) -> Cell:
    """Keep text from a terminal that shows the file, and from a spreadsheet that runs formulas."""
    if not isinstance(cell, str):
        return cell
    text = "\t".join(map(printable, cell.split("\t")))
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text


def _markdown(summary: SweepSummary) -> str:
    head, rows = table_rows(summary)
    words = len(summary.varying)
    rule = ["---"] * words + ["---:"] * (len(head) - words)
    parts = ["  \n".join(map(_cell, shared_lines(summary)))] if summary.groups else []
    if summary.groups:
        lines = [head, rule, *rows]
        parts.append("\n".join("| " + " | ".join(map(_cell, row)) + " |" for row in lines))
    remarks = [*sweep_notes(summary)]
    remarks += [f"Failed: {failure_line(failure)}" for failure in summary.failures]
    if remarks:
        parts.append("\n".join(f"- {_cell(remark)}" for remark in remarks))
    return "\n\n".join(parts or ["No runs."]) + "\n"


def _latex(summary: SweepSummary) -> str:
    """Write a tabular that is never wider than the text, and notes below it, as comments."""
    head, rows = table_rows(summary)
    words = len(summary.varying)
    lines = [" & ".join(map(tex, row)) + r" \\" for row in [head, *rows]]
    columns = "l" * words + "r" * (len(head) - words)
    parts = [
        r"% \usepackage{booktabs,graphicx}; on a landscape page (package pdflscape) it is larger",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        *(rf"\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule", *lines[1:]),
        *(r"\bottomrule", r"\end{tabular}}"),
    ]
    remarks = [*shared_lines(summary), *sweep_notes(summary)] if rows else ["No runs."]
    remarks += [f"Failed: {failure_line(failure)}" for failure in summary.failures]
    comments = [f"% {printable_line(remark)}" for remark in remarks]
    return "\n".join([*(parts if rows else []), *comments]) + "\n"


def tex(text: str) -> str:
    """Write text into a LaTeX table so that it stays text.

    Args:
        text: anything; line breaks become spaces.
    """
    special = {char: rf"\{char}" for char in "&%$#_{}"}
    special |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {"±": r"$\pm$"}
    return "".join(special.get(char, char) for char in printable_line(text))


def _cell(text: str) -> str:
    """Write text into a Markdown table so that it stays in its cell and stays text."""
    line = printable_line(text).replace("\\", "\\\\").replace("<", "&lt;")
    # In brackets it would be a link, or a picture from somewhere.
    return line.replace("|", "\\|").replace("[", "\\[").replace("]", "\\]")


def _json(summary: SweepSummary) -> dict[str, object]:
    return {
        "schema_version": 1,
        "groups": [
            {
                "settings": dict(group.settings),
                "n": group.n,
                "seeds": list(group.seeds),
                "not_implanted": group.not_implanted,
                "shortfalls": dict(group.shortfalls),
                "values": {name: asdict(spread) for name, spread in group.values.items()},
            }
            for group in summary.groups
        ],
        "failures": [
            {
                "job": failure.job,
                "error": failure.error,
                "overrides": list(failure.overrides),
                "log": failure.log,
            }
            for failure in summary.failures
        ],
    }
