"""The one table over all runs of a sweep."""

from rich.console import Console
from rich.table import Table

from fst_lightning.reports.numbers import percent
from fst_lightning.reports.results.boards import setting_text
from fst_lightning.reports.results.build import RATES
from fst_lightning.reports.results.sweep import SweepSummary
from fst_lightning.reports.results.sweep_text import (
    failure_line,
    four_decimals,
    one_decimal,
    shared_lines,
    spread_text,
    sweep_notes,
)
from fst_lightning.reports.terminal.layout import (
    new_table,
    print_line,
    print_table,
    shown,
    width_of,
)


def render_sweep(summary: SweepSummary, console: Console) -> None:
    """Print one line a network and experiment, mean +- deviation over seeds, then what failed.

    Args:
        summary: the sweep.
        console: where to print; plain ASCII lines where it is no terminal.
    """
    console.print()
    print_line(
        console,
        f"{len(summary.runs)} runs, {len(summary.groups)} experiments, "
        f"{len(summary.failures)} failed, in {summary.folder}",
        style="bold",
    )
    for line in shared_lines(summary):
        print_line(console, line)
    if summary.groups:
        console.print()
        table = _table(summary, console, narrow=False)
        if width_of(table, console) > console.width:
            table = _table(summary, console, narrow=True)
        print_table(console, table)
        console.print()
    for note in sweep_notes(summary):
        print_line(console, f"warning  {note}", style="yellow")
    for failure in summary.failures:
        print_line(console, f"failed   {failure_line(failure)}", style="red")


def _table(summary: SweepSummary, console: Console, *, narrow: bool) -> Table:
    sign = shown("±", console).replace("?", "+-")
    sign = sign if narrow else f" {sign} "
    table = new_table(console)
    for name in summary.varying:
        table.add_column(name, no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    headings = [*(f"{name.upper()} %" for name in RATES), "DER", "seconds"]
    for heading in headings[:-1] if narrow else headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for group in summary.groups:
        values = group.values
        names = [setting_text(summary, group, key) for key in summary.varying]
        trained = group.settings.get("task") == "train"
        duration = values["seconds.train" if trained else "seconds.purify"]
        end = [
            spread_text(values["der"], four_decimals, sign),
            spread_text(duration, one_decimal, sign),
        ]
        end = end[:-1] if narrow else end
        rows = ["before"] if trained else ["before", "after"]
        for when in rows:
            first, last = when == rows[0], when == rows[-1]
            rates = [spread_text(values[f"{when}.{name}"], percent, sign) for name in RATES]
            table.add_row(
                *(names if first else [""] * len(names)),
                str(group.n) if first else "",
                when,
                *rates,
                *(end if last else [""] * len(end)),
            )
    return table
