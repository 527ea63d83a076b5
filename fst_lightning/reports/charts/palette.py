"""The colors of charts and pages, by day and by night, and the look of each series."""

from __future__ import annotations

# Hues after Okabe and Ito (2008), in six steps of lightness. Any two of them differ in gray and for
# every kind of color vision (tests/reports/charts/test_palette.py). Each color is unique, because
# `Chart.svg` finds the name of a color by its value.
DAY = {
    "paper": "#fdfdfc",
    "ink": "#1d2125",
    "soft": "#5c646c",
    "line": "#e2e4e6",
    "card": "#fefefe",
    "good": "#00684c",
    "bad": "#a83f00",
    "c0": "#193e73",
    "c1": "#a83b1c",
    "c2": "#4da180",
    "c3": "#40193c",
    "c4": "#aa7601",
    "c5": "#4b4f51",
    # Heat maps, which need darker colors by night, where light text stands on them.
    "h0": "#193e74",
    "h1": "#a83b1d",
    "h2": "#4da181",
}
NIGHT = {
    "paper": "#15181b",
    "ink": "#e6e8ea",
    "soft": "#a2a9b0",
    "line": "#30363c",
    "card": "#1b1f23",
    "good": "#5fcfa9",
    "bad": "#f39b62",
    "c0": "#3e89de",
    "c1": "#ef744e",
    "c2": "#57e1a8",
    "c3": "#a45b93",
    "c4": "#fed878",
    "c5": "#abb5c1",
    "h0": "#3e89de",
    "h1": "#d2603c",
    "h2": "#2f9d70",
}

MARKERS = ("o", "x", "^", "s", "D", "o")
DASHES = ("-", (0, (3.5, 1.5)), (0, (1, 1.5)), (0, (4.5, 1.5, 1, 1.5)), (0, (2, 2)), (0, (0.5, 1)))
"""In multiples of the line's width."""

STYLES = len(MARKERS)
"""How many series can be told apart. A seventh looks like the first."""

RING = 5
"""The style whose marker is not filled."""

SHADE = 0.6
"""The opacity of the darkest cell of a heat map: text on it stays readable by day and by night."""
