"""Draws the two pictures of the architecture page: the rooms of the package, and a run.

    python -m website.pictures  # writes docs/images/rooms.svg and docs/images/run.svg

The rooms and their order come from the import rules in ``pyproject.toml``, their texts from the
first lines of the packages' docstrings. A test fails if a picture is behind them.
"""

from __future__ import annotations

import ast
import textwrap
import tomllib
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"

_WIDTH = 960
_GAP = 12
_LINE = 17
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2933; }
.name { font-weight: 600; font-size: 14px; }
rect { fill: #eef2ff; stroke: #5c6bc0; rx: 6; }
path { stroke: #5c6bc0; stroke-width: 1.5; fill: none; }
@media (prefers-color-scheme: dark) {
  text { fill: #e4e7eb; }
  rect { fill: #283046; stroke: #9fa8da; }
  path { stroke: #9fa8da; }
}
"""

RUN = (
    ("cli", "compose the configuration, check it, find mistakes before torch is imported"),
    ("pipelines/build", "make the data, the attack, the network and the Trainer"),
    ("checkpoints", "take the backdoored network from a file or the store, or train it"),
    ("metrics", "measure CA, ASR and RA of the backdoored network"),
    ("modules + defenses", "tune the network on clean images, as the defense says"),
    ("metrics", "measure the last weights again"),
    ("reports", "write results.json, the table, the page and purified.safetensors"),
)
"""The steps of ``purify.py``: the room that does each, and what it does."""


def layers() -> list[list[str]]:
    """The rooms of the package, the highest layer first, as the import rules order them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (rows,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    return [[room.strip().partition(".")[2] for room in row.split("|")] for row in rows]


def summary(room: str) -> str:
    """The first line of a package's docstring, without its period."""
    source = (ROOT / "fst_lightning" / room / "__init__.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0].rstrip(".")


def rooms_picture() -> str:
    """One row of boxes per layer; imports point downwards only."""
    parts: list[str] = []
    top = _GAP
    for row in layers():
        width = (_WIDTH - _GAP * (len(row) + 1)) / len(row)
        texts = [textwrap.wrap(summary(room), int(width / 7.6)) for room in row]
        height = _LINE * (max(map(len, texts)) + 1) + 14
        for place, (room, lines) in enumerate(zip(row, texts, strict=True)):
            left = _GAP + place * (width + _GAP)
            parts += _box(left, top, width, height, room, lines)
        top += height + _GAP
    return _svg(top, parts, "The rooms of the package; imports point downwards only")


def run_picture() -> str:
    """The steps of a run from top to bottom, with the room that does each."""
    parts: list[str] = []
    height, top = _LINE * 2 + 14, _GAP
    for number, (room, step) in enumerate(RUN):
        parts += _box(_GAP, top, _WIDTH - 2 * _GAP, height, room, [step])
        if number < len(RUN) - 1:
            middle, bottom = _WIDTH / 2, top + height
            parts.append(f'<path d="M{middle:g} {bottom:g} v{_GAP + 4:g} m-4 -5 l4 5 l4 -5"/>')
        top += height + _GAP + 4
    return _svg(top, parts, "The steps of python purify.py attack=blended defense=fst")


def _box(
    left: float, top: float, width: float, height: float, name: str, lines: Sequence[str]
) -> Iterator[str]:
    yield f'<rect x="{left:g}" y="{top:g}" width="{width:g}" height="{height:g}"/>'
    for number, line in enumerate((name, *lines)):
        kind = ' class="name"' if number == 0 else ""
        y = top + _LINE * (number + 1) + 2
        yield f'<text x="{left + 10:g}" y="{y:g}"{kind}>{escape(line)}</text>'


def _svg(height: float, parts: Sequence[str], title: str) -> str:
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:g}" role="img">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n{body}\n</svg>\n"
    )


PICTURES = {"rooms.svg": rooms_picture, "run.svg": run_picture}
"""The pictures by file name in ``docs/images``."""


def main() -> None:
    """Write both pictures."""
    for name, draw in PICTURES.items():
        (IMAGES / name).write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
