"""Pages that need nothing but themselves: no script, no network, every text escaped."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

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


# Hues after Okabe and Ito (2008), in six steps of lightness: any two differ in grey, and for every
# kind of colour vision (tests/reports/test_palette.py). By night lighter ones of the same hue.
STYLE = (
    """
:root{color-scheme:light dark;--paper:#fdfdfc;--card:#fff;--ink:#1d2125;--soft:#5c646c;
--line:#e2e4e6;--good:#00684c;--bad:#a83f00;--c0:#193e73;--c1:#a83b1c;--c2:#4da180;--c3:#40193c;
--c4:#aa7601;--c5:#4b4f51}
@media (prefers-color-scheme:dark){:root{--paper:#15181b;--card:#1b1f23;--ink:#e6e8ea;
--soft:#a2a9b0;--line:#30363c;--good:#5fcfa9;--bad:#f39b62;--c0:#3e89de;--c1:#ef744e;--c2:#57e1a8;
--c3:#a45b93;--c4:#fed878;--c5:#abb5c1;
--h1:#d2603c;--h2:#2f9d70}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1000px;margin:0 auto;padding:48px 24px 32px}
h1{font-size:1.9rem;line-height:1.25;font-weight:650;letter-spacing:-.015em;margin:0 0 .5em;
text-wrap:balance}
h2{font-size:1.2rem;font-weight:650;margin:0 0 .5rem}
h3{font-size:.9rem;font-weight:600;margin:0 0 .35rem}
.kicker{color:var(--soft);font-size:.85rem;margin:0 0 .6rem;letter-spacing:.01em}
.lead{font-size:1.08rem;max-width:46em;margin:.2em 0 .8em}
.good{color:var(--good)}.bad{color:var(--bad)}
.note,figcaption,footer{color:var(--soft);font-size:.875rem}
.note{max-width:52em;margin:0 0 .9rem}
.warning{border-left:3px solid var(--bad);padding:.1em 0 .1em .9em;max-width:52em}
section{margin-top:44px;padding-top:20px;border-top:1px solid var(--line)}
.figures{display:flex;flex-wrap:wrap;gap:28px 32px;align-items:flex-start;margin:.6rem 0 1.2rem}
figure{margin:0;max-width:100%}figure:has(>svg){min-width:min(440px,100%)}
figcaption{max-width:440px;margin-top:.3rem;line-height:1.45}
.wide{overflow-x:auto;margin:.4rem 0 1rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.925rem}
th,td{padding:.32em 1.4em .32em 0;text-align:left;vertical-align:top;
border-bottom:1px solid var(--line)}
th{font-weight:600;color:var(--soft);font-size:.85rem}
.number{text-align:right;padding:.32em 0 .32em 1.4em;white-space:nowrap}
.plain{font-size:.84rem}.plain td{overflow-wrap:anywhere;padding:.22em 1em .22em 0}
.plain td:first-child{color:var(--soft);white-space:nowrap}
.dense{font-size:.8rem}.dense th{font-size:.76rem;vertical-align:bottom}
.dense th,.dense td{padding:.3em .9em .3em 0}.dense .number{padding:.3em 0 .3em .9em}
.dense td.number{white-space:nowrap}.dense th.number{white-space:normal}
.rates td{font-size:1.15rem;padding-top:.45em;padding-bottom:.45em}
.rates small{display:block;color:var(--soft);font-size:.78rem}
.images td,.images th{border:0;padding:.15em .5em .15em 0;vertical-align:middle;font-size:.85rem}
.images img{image-rendering:pixelated;display:block;border-radius:3px}
pre{background:var(--card);border:1px solid var(--line);border-radius:6px;padding:.8em 1em;
overflow-x:auto;font:.85rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;
white-space:pre-wrap;overflow-wrap:anywhere}
details{margin:.6rem 0}summary{cursor:pointer;color:var(--soft)}
footer{margin-top:56px}
svg{display:block;max-width:100%;height:auto;overflow:visible;
font:11.5px system-ui,-apple-system,"Segoe UI",Roboto,Arial,sans-serif}
svg text{fill:var(--ink)}svg .tick,svg .label{fill:var(--soft);font-variant-numeric:tabular-nums}
svg .value{font-variant-numeric:tabular-nums}
svg .over,svg .beside{paint-order:stroke;stroke:var(--paper);stroke-width:3.5px;
stroke-linejoin:round}svg .over{font-weight:650}
.grid{stroke:var(--line)}.axis{stroke:var(--soft);stroke-width:1.2}
.whisker{fill:none;stroke-width:1.3}
.under{stroke:var(--paper);stroke-width:3.6}.error{stroke:var(--ink);stroke-width:1.4}
.frame{fill:none;stroke:var(--line)}
.frontier{fill:none;stroke:var(--soft);stroke-width:1.5;stroke-dasharray:3 3}
.line{fill:none;stroke-width:2;stroke-linejoin:round}.bar{stroke-width:1}
"""
    + "".join(
        f".c{i}{{stroke:var(--c{i})}}.m{i}{{fill:var(--c{i})}}"
        f".b{i}{{stroke:var(--c{i});fill:var(--c{i})}}.h{i}{{fill:var(--h{i},var(--c{i}))}}"
        for i in range(6)
    )
    + (
        # Of two bars the first is pale, so that they differ in grey, too.
        "\n.whisker{stroke-opacity:.75}.b5{fill-opacity:.16}\n.mark{fill-opacity:.85}\n.ring{stroke-width:1.1;stroke-opacity:.75}\n"
        "@media (max-width:600px){main{padding:28px 16px 24px}section{margin-top:32px}"
        "h1{font-size:1.5rem}.rates td{font-size:1rem}.rates .number{padding-left:.7em}"
        ".rates small{white-space:normal}.rates th.number{white-space:normal}"
        ".images img{width:42px}.images th{font-size:.78rem}}\n"
        "@media print{main{max-width:none}section{break-inside:avoid}}\n"
    )
)
