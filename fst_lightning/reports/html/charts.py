"""The charts of a page as files of their own: SVG for papers and slides, PNG for loggers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fst_lightning.reports.html.style import DAY, chart_style

_PARTS = re.compile(
    r"<h2>(?P<section>[^<]*)</h2>|<h3>(?P<title>[^<]*)</h3>|(?P<svg><svg .*?</svg>)", re.DOTALL
)
_FONT = 'font-family="system-ui,Segoe UI,Roboto,Arial,DejaVu Sans,sans-serif" font-size="11.5"'


@dataclass(frozen=True)
class Chart:
    """A chart that stands on its own.

    Args:
        name: from the headings that it stands under, for a file.
        svg: with colours by day, on white; needs no style sheet.
    """

    name: str
    svg: str


def charts(page: str) -> list[Chart]:
    """Take the charts out of a page of ours.

    Args:
        page: what :func:`~fst_lightning.reports.render_page` or
            :func:`~fst_lightning.reports.render_leaderboard` gave.

    Example:
        >>> from fst_lightning.reports.html.svg import Series, line_chart
        >>> svg = line_chart([Series("CA", [0.0, 1.0])], title="CA")
        >>> [chart.name for chart in charts(f"<h2>Curves</h2><h3>On clean images</h3>{svg}")]
        ['curves-on-clean-images']
    """
    section, title = "", ""
    found: list[Chart] = []
    for part in _PARTS.finditer(page):
        if part["section"] is not None:
            section, title = part["section"], ""
        elif part["title"] is not None:
            title = part["title"]
        else:
            name = _file_name(f"{section} {title}")
            twins = sum(re.fullmatch(rf"{name}(-\d+)?", chart.name) is not None for chart in found)
            found.append(Chart(f"{name}-{twins + 1}" if twins else name, standalone(part["svg"])))
    return found


def standalone(svg: str) -> str:
    """Give a chart of a page what the page gave it: a name space, colours by day, a white ground.

    Args:
        svg: as :mod:`fst_lightning.reports.html.svg` draws it.
    """
    opened, _, rest = svg.partition(">")
    ground = '<rect width="100%" height="100%" fill="#fff"/>'
    style = f"<style>{chart_style(DAY | {'paper': '#fff'})}</style>"
    return f'{opened} xmlns="http://www.w3.org/2000/svg" {_FONT}>{style}{ground}{rest}\n'


def png(svg: str, scale: int = 2) -> bytes:
    """Draw a chart as PNG.

    Args:
        svg: one that stands on its own.
        scale: pixels for a unit, 1 or more.

    Raises:
        ImportError: where resvg-py, which draws, is not installed.
    """
    try:
        import resvg_py  # drawing is all that needs it
    except ImportError:
        raise ImportError("Charts as PNG need resvg-py: pip install resvg-py") from None
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, zoom=scale))


def _file_name(text: str) -> str:
    """Letters, digits and hyphens; names of classes may be anything."""
    return "-".join(re.findall(r"[a-z0-9]+", text.lower()))[:80] or "chart"
