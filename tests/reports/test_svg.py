import itertools
import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fst_lightning.reports.svg import (
    Scale,
    Series,
    bar_chart,
    heat_map,
    line_chart,
    marker,
    scatter,
    ticks,
)


def parts(svg: str, tag: str, kind: str = "") -> list[ET.Element]:
    return [
        e for e in ET.fromstring(svg).iter(tag) if kind in e.get("class", "").split() or not kind
    ]


def numbers(element: ET.Element, *names: str) -> list[float]:
    return [float(element.get(name, "nan")) for name in names]


def path(element: ET.Element) -> list[tuple[float, float]]:
    pairs = (pair.split(",") for pair in element.get("points", "").split())
    return [(float(x), float(y)) for x, y in pairs]


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_round_inside_and_few(low: float, reach: float) -> None:
    high = low + reach
    found = ticks(low, high)
    steps = {round((b - a) / (found[1] - found[0]), 3) for a, b in itertools.pairwise(found)}
    assert steps == {1.0}
    assert 2 <= len(found) <= 7
    slack = 1e-6 * (reach + abs(low))
    assert low - slack <= found[0] <= found[-1] <= high + slack
    leading = f"{found[1] - found[0]:.6e}"[0]
    assert leading in "125" or f"{found[1] - found[0]:.3e}"[0] in "125"


def test_ticks_of_epochs_are_whole() -> None:
    assert ticks(1, 4, 8, whole=True) == [1, 2, 3, 4]


def test_a_line_lies_where_its_values_are() -> None:
    """Width 440, height 250, numbers at the left (54) and below (38): (0, 0) is at (54, 212)."""
    svg = line_chart([Series("", [0.0, 0.5, 1.0], [0, 5, 10])], title="t", y_range=(0, 1))
    (line,) = parts(svg, "polyline")
    assert path(line) == [(54, 212), (240, 109), (426, 6)]
    centres = [numbers(circle, "cx", "cy") for circle in parts(svg, "circle")]
    assert centres == [[54, 212], [240, 109], [426, 6]]


def test_a_gap_breaks_a_line() -> None:
    values = [0.0, 1.0, None, 3.0, math.nan, 5.0, 6.0, math.inf]
    lines = parts(line_chart([Series("", values)], title="t"), "polyline")
    assert [len(path(line)) for line in lines] == [2, 2]


def test_series_differ_in_grey() -> None:
    svg = line_chart([Series(f"s{i}", [i, i + 1], style=i) for i in range(6)], title="t")
    dashes = [line.get("stroke-dasharray") for line in parts(svg, "polyline")]
    assert len(set(dashes)) == 6
    shapes = {re.sub(r"[\d. -]+", "#", marker(i, 10, 10)) for i in range(6)}
    assert len(shapes) == 6


def test_a_flat_line_and_no_line_can_be_drawn() -> None:
    flat = path(parts(line_chart([Series("", [7.0, 7.0])], title="t"), "polyline")[0])
    assert flat[0][1] == flat[1][1] == 109  # the middle of 6 and 212
    assert parts(line_chart([Series("", [None])], title="t"), "polyline") == []


def test_bars_are_as_long_as_their_values() -> None:
    """With one-letter names the axis starts at 20.4; 14 pixels are kept free at the right."""
    svg = bar_chart(["a", "b"], [Series("", [50.0, -25.0])], title="t", x_range=(-50, 50))
    scale = Scale(-50, 50, 14 + 6.4, 440 - 14)
    first, second = (numbers(bar, "x", "width") for bar in parts(svg, "rect", "bar"))
    assert first == pytest.approx([scale(0), scale(50) - scale(0)], abs=0.01)
    assert second == pytest.approx([scale(-25), scale(0) - scale(-25)], abs=0.01)


def test_intervals_lie_on_the_bars() -> None:
    svg = bar_chart(
        ["a"], [Series("", [50.0])], title="t", errors=[[(40.0, 60.0)]], x_range=(0, 100)
    )
    scale = Scale(0, 100, 20.4, 426)
    (error,) = parts(svg, "path", "error")
    ends = re.fullmatch(r"M([\d.]+) [\d.]+H([\d.]+)", error.get("d", ""))
    assert ends is not None
    assert [float(end) for end in ends.groups()] == pytest.approx([scale(40), scale(60)], abs=0.01)


def test_cells_are_as_dark_as_their_values() -> None:
    texts = [["0", "5"], ["", "10"]]
    svg = heat_map([[0.0, 0.5], [None, 1.0]], ["a", "b"], ["c", "d"], title="t", texts=texts)
    cells = parts(svg, "rect", "cell")
    assert [float(cell.get("fill-opacity", "")) for cell in cells] == [0.31, 0.62]
    (_, _, width, _), (x, y, _, height) = (numbers(c, "x", "y", "width", "height") for c in cells)
    assert (width, height) == (34, 34)
    values = {e.text: numbers(e, "x", "y") for e in parts(svg, "text", "value")}
    assert values["10"] == pytest.approx([x + 17, y + 21], abs=0.01)
    assert set(values) == {"0", "5", "10"}


def test_a_large_matrix_stays_small() -> None:
    count = 100
    names = [f"class {i}" for i in range(count)]
    values = [[float(i == j) for j in range(count)] for i in range(count)]
    svg = ET.fromstring(heat_map(values, names, names, title="t", texts=[["1"] * count] * count))
    assert float(svg.get("width", "")) < 600
    assert len([e for e in svg.iter("rect") if "cell" in e.get("class", "")]) == count
    assert not [e for e in svg.iter("text") if e.get("class") == "value"]


def test_points_names_and_frontier_lie_on_one_another() -> None:
    svg = scatter(
        [Series("", [0.0, 1.0], [0.0, 1.0])],
        title="t",
        x_range=(0, 1),
        y_range=(0, 1),
        frontier=[(0.0, 0.0), (1.0, 1.0)],
        names=[((1.0, 1.0), "here")],
    )
    ends = [(54.0, 282.0), (426.0, 6.0)]
    assert [tuple(numbers(c, "cx", "cy")) for c in parts(svg, "circle")] == ends
    assert path(parts(svg, "polyline", "frontier")[0]) == ends
    assert numbers(parts(svg, "text", "over")[0], "x", "y") == [426, 10]


def test_labels_of_close_points_do_not_overlap() -> None:
    svg = scatter([Series("", [1.0] * 4, [1.0] * 4, 0, ["a", "b", "c", "d"])], title="t")
    heights = sorted(numbers(e, "y")[0] for e in parts(svg, "text", "beside"))
    assert all(b - a >= 11 for a, b in itertools.pairwise(heights))


@pytest.mark.parametrize("chart", ["line", "bar", "heat", "scatter"])
def test_names_are_text(chart: str) -> None:
    evil = '</text><script>alert("1")</script>&\u202e\x00'
    series = [Series(evil, [1.0], labels=[evil])]
    svg = {
        "line": lambda: line_chart(series, title=evil, x_label=evil, y_label=evil),
        "bar": lambda: bar_chart([evil], series, title=evil, texts=[[evil]], x_label=evil),
        "heat": lambda: heat_map([[1.0]], [evil], [evil], title=evil, texts=[[evil]]),
        "scatter": lambda: scatter(series, title=evil, names=[((0, 1), evil)]),
    }[chart]()
    tree = ET.fromstring(svg)
    assert {element.tag for element in tree.iter()} <= {
        *("svg", "text", "title", "rect", "line", "path", "circle", "polyline", "polygon")
    }
    shown = "".join(tree.itertext())
    assert "<script>" in shown
    assert "\u202e" not in svg
