"""The section of a page on attacks that test whether a purified network stays clean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fst_lightning.reports.charts.chart import Chart
from fst_lightning.reports.charts.plots import Series, line_chart
from fst_lightning.reports.html.page import Figure, Section, Table
from fst_lightning.reports.results.robustness import robustness_figures

_LINES = {"ca": ("clean accuracy", 0), "asr": ("attack success rate", 1), "ra": ("robust", 2)}


def robustness_section(results: Mapping[str, Any]) -> Section:
    """Return the section. It is empty if no check was asked for."""
    found = results.get("robustness") or {}
    figures = [_figure(name, block) for name, block in found.items()]
    note = (
        "What an attacker gets who knows the trigger. On at most 2,000 clean and 2,000 triggered "
        "test images, in float32: figures may differ a little from those above."
    )
    return Section("After the defense", figures, note, explained="after-the-defense")


def _figure(name: str, block: Mapping[str, Any]) -> Figure:
    title = name.replace("_", " ").capitalize()
    if "t" in block:
        return Figure(title, _connectivity(block), caption=_meaning(block))
    return Figure(title, table=Table(list(robustness_figures(block)), kind=""))


def _meaning(block: Mapping[str, Any]) -> str:
    words = "From the backdoored weights (0) to the purified ones (1), in a straight line."
    images = block.get("batchnorm_images")
    if images:
        words += f" BatchNorm statistics are recomputed at every point, on {images:,} images."
    return words


def _connectivity(block: Mapping[str, Any]) -> Chart:
    """The rates between two networks: ``t``, and rates in [0, 1] as long as it."""
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
