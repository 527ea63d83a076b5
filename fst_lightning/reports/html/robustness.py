"""What the checks of a purified network found, for the report and as a picture of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fst_lightning.reports.html.pages import figure, figures, section, table
from fst_lightning.reports.html.style import STYLE
from fst_lightning.reports.html.svg import Series, line_chart
from fst_lightning.reports.results.files import write_text
from fst_lightning.reports.results.robustness import robustness_figures

_LINES = {"ca": ("clean accuracy", 0), "asr": ("attack success rate", 1), "ra": ("robust", 2)}


def robustness_section(results: Mapping[str, Any]) -> str:
    """The part of the page on what becomes of the purified network; "" where nothing was asked."""
    found = results.get("robustness") or {}
    items = [item for name, block in found.items() for item in _of(name, block)]
    note = (
        "What an attacker gets who knows the trigger. On at most 2,000 clean and 2,000 triggered "
        "test images, in float32: figures may differ a little from those above."
    )
    return section("After the defense", [figures(items)], note)


def _of(name: str, block: Mapping[str, Any]) -> Iterator[str]:
    title = name.replace("_", " ").capitalize()
    if "t" in block:
        yield figure(connectivity_chart(block), title, _meaning(block))
        return
    rows = [[words, text] for words, text in robustness_figures(block)]
    yield figure(table(["", ""], rows), title)


def _meaning(block: Mapping[str, Any]) -> str:
    words = "From the backdoored weights (0) to the purified ones (1), in a straight line."
    images = block.get("batchnorm_images")
    if images:
        words += f" Statistics of BatchNorm computed anew at every point, on {images:,} images."
    return words


def connectivity_chart(block: Mapping[str, Any]) -> str:
    """The rates between two networks, as SVG.

    Args:
        block: ``t``, and rates in [0, 1] as long as it.
    """
    places = [float(t) for t in block["t"]]
    lines = [
        Series(word, [None if y is None else 100 * y for y in block[key]], places, style)
        for key, (word, style) in _LINES.items()
        if key in block
    ]
    return line_chart(
        lines,
        title="rates between the backdoored and the purified network",
        x_label="t",
        y_label="%",
        x_range=(0, 1),
        y_range=(0, 100),
    )


def write_connectivity(folder: Path, results: Mapping[str, Any]) -> list[Path]:
    """Write every such chart into the run's folder, as an SVG file that needs nothing else."""
    written = []
    for name, block in (results.get("robustness") or {}).items():
        if "t" in block:
            chart = connectivity_chart(block)
            opened = chart.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
            head, rest = opened.split(">", 1)
            path = folder / f"{name}.svg"
            write_text(path, f"{head}><style>{STYLE}</style>{rest}\n")
            written.append(path)
    return written
