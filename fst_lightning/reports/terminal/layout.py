"""Tables and lines of text that suit a terminal or a text file."""

from typing import Any

from rich.box import SIMPLE, Box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

# A heading underlined with hyphens: readable in a log, a mail or a pipe.
_PLAIN = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)


class PlainTable(Table):
    """A table whose headings and cells are text as it is: nothing in them is markup.

    Attributes:
        console: whose encoding the text has to fit.
    """

    console: Console

    def add_column(self, header: RenderableType = "", *args: Any, **options: Any) -> None:
        """Add a column; see Rich."""
        super().add_column(self._plain(header), *args, **options)

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """Add a row; see Rich."""
        super().add_row(*map(self._plain, cells), **options)

    def _plain(self, cell: RenderableType | None) -> RenderableType:
        return Text(shown(cell, self.console)) if isinstance(cell, str) else cell or Text()


class Uncut:
    """A table that is never narrower than its content.

    Rich shortens cells to fit the console, and "97.…" is a wrong number. This one is printed at
    the width it needs, with `crop=False`; a narrow terminal wraps its lines.
    """

    def __init__(self, table: Table) -> None:
        self.table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render the table at its own width."""
        needed = width_of(self.table, console)
        yield from console.render(self.table, options.update(width=needed))


def width_of(table: Table, console: Console) -> int:
    """Return the number of columns a table needs to show every cell whole."""
    wide = console.options.update(width=100_000)
    return Measurement.get(console, wide, table).maximum


def new_table(console: Console) -> Table:
    """Start a table that suits the console: lines on a terminal, hyphens elsewhere."""
    table = PlainTable(
        box=SIMPLE if console.is_terminal else _PLAIN,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="bold",
    )
    table.console = console
    return table


def print_table(console: Console, table: Table) -> None:
    """Print a table with none of its cells cut."""
    console.print(Uncut(table), crop=False)


def print_line(console: Console, text: str, style: str = "") -> None:
    """Print one line of text as it is: no markup, no line breaks put into paths."""
    console.print(Text(shown(text, console), style=style), soft_wrap=True)


def shown(text: object, console: Console) -> str:
    """Make text safe to print: one line, no control characters, only what the console can show."""
    line = "".join(char if char.isprintable() else " " for char in str(text))
    return line.encode(console.encoding, "replace").decode(console.encoding)
