"""A page as data, and its HTML: no script, nothing loaded, every text escaped by Jinja.

A page is a headline and a list of sections, a section a list of figures, and a figure shows a chart
or a table. The templates lie beside this file, in ``templates/``.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from fst_lightning.documentation import page_address
from fst_lightning.printable import printable
from fst_lightning.reports.charts.chart import Chart, write_pdf
from fst_lightning.reports.charts.palette import DAY, NIGHT
from fst_lightning.reports.results.files import write_text
from fst_lightning.reports.text import slug
from fst_lightning.version import __version__

if TYPE_CHECKING:
    from jinja2 import Environment


@dataclass(frozen=True, eq=False)
class Picture:
    """An image in a cell of a table.

    Attributes:
        pixels: ``(H, W, 3)`` uint8.
        text: What it shows, for those who cannot see it.
        lines: Texts under it.
        side: How wide it is shown, in pixels. A larger image is scaled down to twice that.
    """

    pixels: np.ndarray[Any, np.dtype[np.uint8]]
    text: str
    lines: Sequence[str] = ()
    side: int = 96

    @property
    def source(self) -> str:
        """The image as a PNG inside the page."""
        image = Image.fromarray(self.pixels)
        if max(image.size) > 2 * self.side:
            image.thumbnail((2 * self.side, 2 * self.side))
        file = io.BytesIO()
        image.save(file, "PNG", optimize=True)
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


@dataclass(frozen=True)
class Link:
    """A link in a cell of a table.

    Attributes:
        text: What is shown.
        address: As :func:`address_of` writes it.
    """

    text: str
    address: str


Cell = str | int | Picture | Link | Sequence[Link]


@dataclass(frozen=True)
class Table:
    """A table of texts, numbers, pictures and links.

    Attributes:
        rows: The cells.
        head: The headings. The default is none.
        kind: Its class in the style sheet: "plain", "lines", "dense" or "images".
        text_columns: How many columns from the left are words. The others are numbers.
    """

    rows: Sequence[Sequence[Cell]]
    head: Sequence[str] = ()
    kind: str = "plain"
    text_columns: int = 1


@dataclass(frozen=True)
class Figure:
    """A chart or a table, with a title above it and a caption under it.

    Attributes:
        title: May be empty.
        chart: What is drawn. Its files get the name of section and figure.
        table: What is listed.
        caption: A sentence or two.
        scrolls: Whether a window narrower than the chart scrolls it instead of shrinking it.
    """

    title: str
    chart: Chart | None = None
    table: Table | None = None
    caption: str = ""
    scrolls: bool = False


@dataclass(frozen=True)
class Section:
    """A part of a page under a heading. One without content is left out.

    Attributes:
        title: The heading.
        figures: Shown side by side, as many as the window has room for.
        note: A sentence or two under the heading.
        explained: The heading of docs/figures.md that explains it, as an anchor.
        template: The template that shows the content.
        values: What that template needs beside the figures.
    """

    title: str
    figures: Sequence[Figure] = ()
    note: str = ""
    explained: str = ""
    template: str = "figures.html.j2"
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show."""
        return not self.figures and not self.values

    @property
    def anchor(self) -> str:
        """The id that the table of contents leads to."""
        return slug(self.title)


@dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes:
        title: Of the window.
        headline: The one sentence that a reader should take away.
        sections: The parts. Empty ones are left out.
        kicker: A line above the headline.
        lead: A paragraph under the headline.
        tone: "good", "bad" or "", the color of the headline.
        warnings: Sentences that a reader must know before he believes the figures.
        caution: What the page does not show.
    """

    title: str
    headline: str
    sections: Sequence[Section]
    kicker: str = ""
    lead: str = ""
    tone: str = ""
    warnings: Sequence[str] = ()
    caution: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "sections", [s for s in self.sections if not s.empty])

    def html(self) -> str:
        """Return HTML that needs nothing but itself."""
        template = _environment().get_template("page.html.j2")
        return template.render(page=self, day=DAY, night=NIGHT, version=__version__)

    def charts(self) -> dict[str, Chart]:
        """Return the charts by name, such as ``features-before``, in the order of the page."""
        found: dict[str, Chart] = {}
        for name, chart in self._named():
            twins = sum(other == name or other.rpartition("-")[0] == name for other in found)
            found[f"{name}-{twins + 1}" if name in found else name] = chart
        return found

    def write(self, file: Path) -> None:
        """Write the page, and its charts for papers and slides.

        The charts are pages of ``charts.pdf``, in the order of the page, and pictures in
        ``charts/``.

        Args:
            file: The page. Older files are replaced.
        """
        write_text(file, self.html())
        charts, folder = self.charts(), file.with_name("charts")
        for stale in folder.glob("*.png"):
            stale.unlink()
        if charts:
            folder.mkdir(exist_ok=True)
            write_pdf(charts.values(), file.with_name("charts.pdf"))
        for name, chart in charts.items():
            (folder / f"{name}.png").write_bytes(chart.png())

    def _named(self) -> Iterator[tuple[str, Chart]]:
        for section in self.sections:
            for figure in section.figures:
                if figure.chart is not None:
                    yield slug(f"{section.title} {figure.title}"), figure.chart


def address_of(path: str) -> str:
    """Turn a relative path into the address of a link, which no name can lead elsewhere.

    Example:
        >>> address_of("0/report.html"), address_of("javascript:x/report.html")
        ('./0/report.html', './javascript%3Ax/report.html')
    """
    return "./" + quote(path.encode("utf-8", "surrogateescape"))


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("fst_lightning.reports.html"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["page_address"] = page_address
    return environment


def _shown(value: object) -> object:
    """Make characters visible that control a display or turn the direction of writing."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return "\n".join(map(printable, value.split("\n")))
