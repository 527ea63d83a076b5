"""The table at the end of a run."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from fst_lightning.reports.numbers import NOT_GIVEN, percent, signed_points
from fst_lightning.reports.results.build import RATES, network_files
from fst_lightning.reports.results.choices import choices
from fst_lightning.reports.results.detection import detection_lines
from fst_lightning.reports.results.notes import notes, shortfalls
from fst_lightning.reports.results.verdict import verdict
from fst_lightning.reports.terminal.layout import new_table, print_line, print_table


def render_run(
    results: Mapping[str, Any],
    console: Console,
    written: Sequence[str | os.PathLike[str]] = (),
    folder: str | os.PathLike[str] | None = None,
) -> None:
    """Print what a run found: the rates with their intervals, warnings, and the files written.

    Args:
        results: the content of a results.json.
        console: where to print; plain ASCII lines where it is no terminal.
        written: further files to name, beside the checkpoints.
        folder: the run's folder, to be named last.
    """
    before, after = results["before"], results["after"]
    console.print()
    print_line(console, _heading(results), style="bold")
    console.print()

    table = new_table(console)
    table.add_column("", no_wrap=True)
    for name in RATES:
        table.add_column(f"{name.upper()} %", justify="right", no_wrap=True)
    for when, label in _labels(results):
        table.add_row(label, *(percent(results[when][name]) for name in RATES))
        intervals = results["ci95"].get(when) or {}
        if any(intervals.values()):
            cells = (_interval(intervals.get(name)) for name in RATES)
            table.add_row("  95 % interval", *cells, style="dim")
    if after is not None:
        changes = (_difference(before[name], after[name]) for name in RATES)
        table.add_row("difference", *(signed_points(change) for change in changes))
        ends = (results["ci95"].get("change") or {}).get("ca")
        if ends:
            cell = f"{signed_points(ends[0])} to {signed_points(ends[1])}"
            table.add_row("  95 % interval", cell, style="dim")
    print_table(console, table)
    console.print()

    if results["der"] is not None:
        print_line(console, f"DER      {results['der']:.4f}", style="bold")
    control = results["attack"].get("control_rate")
    if control is not None:
        print_line(
            console,
            f"control  {percent(control)} % of the clean images of other classes get the "
            "attacker's label without the trigger",
        )
    if results["task"] != "detect":  # whose verdict is that of its scan
        print_line(console, f"verdict  {verdict(results).headline}", style="bold")
    seconds = [f"{key} {value:.1f} s" for key, value in results["seconds"].items() if value]
    if seconds:
        print_line(console, "time     " + ", ".join(seconds))
    summary = ((results["defense"] or {}).get("findings") or {}).get("summary")
    if summary and not shortfalls(results):  # else it is a part of the warnings
        print_line(console, f"defense  {summary}")
    for sentence in choices(results):
        print_line(console, f"chosen   {sentence}")
    for line in detection_lines(results):
        print_line(console, line)
    for note in notes(results):
        print_line(console, f"warning  {note}", style="yellow")
    for name, file in network_files(results):
        print_line(console, f"{name:<18} {file}")
    for path in (*written, *([] if folder is None else [folder])):
        print_line(console, f"{'written':<18} {os.fspath(path)}")


def _heading(results: Mapping[str, Any]) -> str:
    """Name the choices of the run: `purify  attack=blended (poison_ratio 0.05) ...`."""
    words = [results["task"]]
    hidden = {"name", "control_rate", "implanted", "auto"}
    for block in ("attack", "defense"):
        choice = results[block]
        if choice is not None:
            details = ", ".join(
                f"{key} {value}"
                for key, value in choice.items()
                if key not in hidden and value is not None and not isinstance(value, dict | list)
            )
            words.append(f"{block}={choice['name']}" + (f" ({details})" if details else ""))
    words += [f"data={results['data']['name']}", f"model={results['model']['name']}"]
    return "  ".join([*words, f"seed={results['seed']}"])


def _labels(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    if results["task"] == "train":
        clean = results["attack"]["name"] == "none"
        return [("before", "trained" if clean else "backdoored")]
    if results["task"] == "detect":
        return [("before", "network")]
    rows = [("before", "before")]
    return [*rows, ("after", "after")] if results["after"] is not None else rows


def _interval(ends: Sequence[float] | None) -> str:
    return NOT_GIVEN if ends is None else f"{percent(ends[0])} to {percent(ends[1])}"


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before
