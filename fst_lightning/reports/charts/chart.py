"""A chart that a page, a paper and a logger can use."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fst_lightning.printable import printable
from fst_lightning.reports.charts.palette import DAY

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLASS = "class:"
"""The prefix of a Matplotlib group id that becomes a class in the SVG of a page."""

_VARIABLES = {color: f"var(--{name})" for name, color in DAY.items()}
_COLOR = re.compile("|".join(_VARIABLES))
_METADATA = re.compile(r"<metadata>.*?</metadata>|<style .*?</style>", re.DOTALL)
_GROUP = re.compile(rf'id="(?:{CLASS}([a-z]+)|[^"]*)"')
_DECIMALS = re.compile(r"-?\b\d+\.\d{3,}")
_FONT = re.compile(r"font-family: [^;\"]*;? ?")


@dataclass(frozen=True, eq=False)
class Chart:
    """A drawn figure, as SVG for a page and as files for papers and loggers.

    The same chart gives the same bytes: no file holds a date or a random number.

    Attributes:
        title: What it shows, for a screen reader.
        figure: The Matplotlib figure, one point per pixel of the page, with colors by day.

    Example:
        >>> from fst_lightning.reports.charts.plots import Series, line_chart
        >>> chart = line_chart([Series("CA", [0.0, 1.0])], title="clean accuracy")
        >>> chart.svg()[:44]
        '<svg role="img" aria-label="clean accuracy" '
    """

    title: str
    figure: Figure

    def svg(self) -> str:
        """Return SVG for a page: its colors are the page's CSS variables, its text has its font."""
        text = self._saved("svg", facecolor="none", metadata={"Date": None}).decode("utf-8")
        text = _METADATA.sub("", text[text.index("<svg") :])
        width, height = (72 * side for side in self.figure.get_size_inches())
        opening = (
            f'<svg role="img" aria-label="{escape(printable(self.title))}" width="{width:.0f}" '
            f'height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}">'
        )
        # Inside of text, `<` and `>` are escaped: what matches is a tag.
        body = re.sub(r"<[^<>]*>", _for_page, text.partition(">")[2])
        return opening + re.sub(r">\s+<", "><", body).strip()

    def png(self) -> bytes:
        """Return a PNG by day, on white, with two pixels per pixel of the page."""
        return self._saved("png", dpi=144, pil_kwargs={"compress_level": 3})

    def write(self, folder: Path, name: str) -> list[Path]:
        """Write ``NAME.svg``, ``NAME.pdf`` and ``NAME.png``, by day, on white.

        Args:
            folder: Where to write. It is created if it does not exist.
            name: The name of the files, without a suffix.
        """
        svg = self._saved("svg", metadata={"Date": None})
        pdf = self._saved("pdf", metadata={"CreationDate": None})
        folder.mkdir(parents=True, exist_ok=True)
        written = {"svg": svg, "pdf": pdf, "png": self.png()}
        for kind, content in written.items():
            (folder / f"{name}.{kind}").write_bytes(content)
        return [folder / f"{name}.{kind}" for kind in written]

    def _saved(self, kind: Literal["svg", "pdf", "png"], **settings: Any) -> bytes:
        file = io.BytesIO()
        with drawing({"svg.hashsalt": printable(self.title)}):
            self.figure.savefig(file, format=kind, **{"facecolor": "white", **settings})
        return file.getvalue()


def write_pdf(charts: Iterable[Chart], path: Path) -> None:
    """Write charts into one PDF with TrueType fonts, a page each, in their order.

    One file embeds its font once, which takes most of the time.

    Args:
        charts: At least one.
        path: The file. An older one is replaced.
    """
    from matplotlib.backends.backend_pdf import PdfPages

    with drawing(), PdfPages(path, metadata={"CreationDate": None}) as pages:
        for chart in charts:
            pages.savefig(chart.figure, facecolor="white")


@contextmanager
def drawing(settings: dict[str, Any] | None = None) -> Iterator[None]:
    """Draw in the style of ``fst.mplstyle``, whatever the user's own Matplotlib settings are.

    Args:
        settings: Further entries of ``matplotlib.rcParams``.
    """
    import matplotlib as mpl

    with mpl.rc_context({**_style(), **(settings or {})}), warnings.catch_warnings():
        # A letter that the font lacks is a box in the PNG. In the page, the browser has it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


@cache
def _style() -> dict[str, Any]:
    import matplotlib as mpl

    defaults = {k: v for k, v in mpl.rcParamsDefault.items() if not k.startswith("backend")}
    with resources.as_file(resources.files(__package__).joinpath("fst.mplstyle")) as file:
        return {**defaults, **mpl.rc_params_from_file(file, use_default_template=False)}


def _for_page(found: re.Match[str]) -> str:
    tag = _COLOR.sub(lambda color: _VARIABLES[color[0]], _FONT.sub("", found[0]))
    if tag.startswith("<g "):
        tag = _GROUP.sub(lambda group: f'class="{group[1]}"' if group[1] else "", tag)
    tag = re.sub(r' transform="rotate\(-?0 [^"]*"| target="_blank"', "", tag)
    tag = _DECIMALS.sub(lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), tag)
    return " ".join(tag.split()).replace("<g >", "<g>")
