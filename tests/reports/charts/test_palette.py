"""Series can be told apart in gray, and by people with any kind of color vision."""

import itertools
from typing import Any

import numpy as np
import pytest

from fst_lightning.reports.charts.palette import DASHES, DAY, MARKERS, NIGHT, RING, SHADE, STYLES

Vector = np.ndarray[Any, np.dtype[np.float64]]

# Machado, Oliveira and Fernandes, "A physiologically-based model for simulation of color vision
# deficiency", IEEE TVCG 2009: severity 1, on linear RGB.
SIGHT = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
WHITE = TO_XYZ.sum(axis=1)


def linear(color: str) -> Vector:
    """The linear RGB of ``#rrggbb`` or ``#rgb``, by IEC 61966-2-1."""
    text = color.lstrip("#")
    text = "".join(2 * char for char in text) if len(text) == 3 else text
    values = np.array([int(text[i : i + 2], 16) / 255 for i in (0, 2, 4)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: Vector) -> Vector:
    """CIE 1976 L*a*b* of linear RGB."""
    ratio = TO_XYZ @ np.clip(rgb, 0, 1) / WHITE
    root = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.array([116 * root[1] - 16, 500 * (root[0] - root[1]), 200 * (root[1] - root[2])])


def contrast(one: Vector, two: Vector) -> float:
    """The contrast ratio of the WCAG 2."""
    low, high = sorted(float(TO_XYZ[1] @ color) for color in (one, two))
    return (high + 0.05) / (low + 0.05)


def themes() -> list[Any]:
    """The colors by day and by night."""
    return [pytest.param(DAY, id="day"), pytest.param(NIGHT, id="night")]


def series(theme: dict[str, str]) -> list[Vector]:
    return [linear(theme[f"c{i}"]) for i in range(STYLES)]


def test_the_measures_are_right() -> None:
    assert lab(linear("#ffffff")) == pytest.approx([100, 0, 0], abs=0.01)
    assert lab(linear("#ff0000")) == pytest.approx([53.24, 80.09, 67.20], abs=0.05)
    assert contrast(linear("#000"), linear("#fff")) == pytest.approx(21)


@pytest.mark.parametrize("theme", themes())
def test_colors_differ_in_gray(theme: dict[str, str]) -> None:
    """2.3 is a just noticeable difference; those that share charts are further apart."""
    light = [float(lab(color)[0]) for color in series(theme)]
    assert min(abs(a - b) for a, b in itertools.combinations(light, 2)) >= 6
    # CA and ASR; clean, target and triggered; before and after.
    for a, b in ((0, 1), (1, 2), (0, 2), (0, 5), (1, 5)):
        assert abs(light[a] - light[b]) >= 6


@pytest.mark.parametrize("theme", themes())
@pytest.mark.parametrize("sight", SIGHT)
def test_colors_differ_for_every_color_vision(theme: dict[str, str], sight: str) -> None:
    seen = [lab(SIGHT[sight] @ color) for color in series(theme)]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) >= 13


@pytest.mark.parametrize("theme", themes())
def test_graphics_and_text_stand_out_from_the_paper(theme: dict[str, str]) -> None:
    """WCAG 2.1: 3 for graphics, 4.5 for text."""
    paper = linear(theme["paper"])
    assert min(contrast(color, paper) for color in series(theme)) >= 3
    for name in ("ink", "soft", "good", "bad"):
        assert contrast(linear(theme[name]), paper) >= 4.5


@pytest.mark.parametrize("theme", themes())
def test_figures_in_the_darkest_cell_can_be_read(theme: dict[str, str]) -> None:
    def encoded(rgb: Vector) -> Vector:
        return np.where(rgb <= 0.0031308, 12.92 * rgb, 1.055 * rgb ** (1 / 2.4) - 0.055)

    paper, ink = linear(theme["paper"]), linear(theme["ink"])
    for i in range(3):
        color = linear(theme[f"h{i}"])
        mixed = SHADE * encoded(color) + (1 - SHADE) * encoded(paper)  # as browsers mix
        back = np.where(mixed <= 0.04045, mixed / 12.92, ((mixed + 0.055) / 1.055) ** 2.4)
        assert contrast(back, ink) >= 4.5


def test_series_differ_without_color() -> None:
    shapes = {(marker, i == RING) for i, marker in enumerate(MARKERS)}
    assert len(shapes) == len(set(DASHES)) == STYLES
