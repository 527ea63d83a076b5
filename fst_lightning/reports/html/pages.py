"""Pages that need nothing but themselves: no script, no network, every text escaped."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from fst_lightning.reports.html.style import STYLE
from fst_lightning.version import __version__


def escape(text: object) -> str:
    """Make text harmless in HTML and SVG, in elements and in quoted attributes.

    Control characters and those that turn the direction of writing become spaces.

    Example:
        >>> escape('<b> & "c"')
        '&lt;b&gt; &amp; &quot;c&quot;'
    """
    line = "".join(char if char.isprintable() or char == "\n" else " " for char in str(text))
    # Surrogates, of file names that are no UTF-8, are no text that a page could hold.
    return html.escape(line.encode("utf-8", "replace").decode("utf-8"), quote=True)


def shorten(text: str, most: int = 26) -> str:
    """Cut a long name in the middle, whose two ends tell it from others.

    Example:
        >>> shorten("layer4.1.conv2.weight", 11)
        'layer…eight'
    """
    if len(text) <= most:
        return text
    first = (most - 1) // 2
    return f"{text[:first]}\N{HORIZONTAL ELLIPSIS}{text[-(most - 1 - first) :]}"


def page(title: str, body: Iterable[str]) -> str:
    """Put a whole page together.

    Args:
        title: of the window.
        body: parts that are HTML already.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        # Whatever should slip through all the same: nothing is loaded, nothing runs.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + f"\n<footer>fst-lightning {escape(__version__)}</footer>\n</main>\n</body>\n</html>\n"
    )


def section(title: str, parts: Iterable[str], note: str = "") -> str:
    """A part of a page under a heading; nothing where it has no content.

    Args:
        title: the heading.
        parts: its content, HTML already.
        note: a sentence under the heading, plain text.
    """
    content = "\n".join(filter(None, parts))
    if not content:
        return ""
    lead = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section>\n<h2>{escape(title)}</h2>\n{lead}\n{content}\n</section>"


def figures(items: Iterable[str]) -> str:
    """Figures side by side, as many as the window has room for."""
    content = "\n".join(filter(None, items))
    return f'<div class="figures">\n{content}\n</div>' if content else ""


def figure(picture: str, title: str, caption: str = "") -> str:
    """A picture with a title over it and a caption under it.

    Args:
        picture: SVG or another HTML.
        title: plain text.
        caption: plain text.
    """
    under = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure><h3>{escape(title)}</h3>{picture}{under}</figure>"


def table(
    head: Sequence[str], rows: Iterable[Sequence[object]], *, kind: str = "", text_columns: int = 1
) -> str:
    """A table of plain values.

    Args:
        head: the headings; none where all are empty.
        rows: the cells.
        kind: its class in the style sheet.
        text_columns: how many columns, from the left, are words; the others are numbers.
    """

    def cell(tag: str, column: int, value: object) -> str:
        number = ' class="number"' if column >= text_columns else ""
        return f"<{tag}{number}>{escape(value)}</{tag}>"

    lines = ["".join(cell("td", i, value) for i, value in enumerate(row)) for row in rows]
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    if not body:
        return ""
    top = "".join(cell("th", i, name) for i, name in enumerate(head)) if any(head) else ""
    top = f"<thead><tr>{top}</tr></thead>" if top else ""
    shape = f' class="{kind}"' if kind else ""
    return f'<div class="wide"><table{shape}>{top}<tbody>\n{body}\n</tbody></table></div>'


def details(summary: str, content: str) -> str:
    """Something to be opened: long lists, raw files."""
    return f"<details><summary>{escape(summary)}</summary>\n{content}\n</details>"


def picture(pixels: np.ndarray[Any, np.dtype[np.uint8]], text: str, side: int = 96) -> str:
    """An image as a PNG inside the page.

    Args:
        pixels: ``(H, W, 3)`` uint8.
        text: what it shows, for those who can't see it.
        side: how wide it is shown, in pixels; larger images are scaled down to twice that.
    """
    image = Image.fromarray(pixels)
    if max(image.size) > 2 * side:
        image.thumbnail((2 * side, 2 * side))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return f'<img width="{side}" alt="{escape(text)}" src="data:image/png;base64,{data}">'
