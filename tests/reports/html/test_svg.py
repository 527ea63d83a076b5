import itertools
import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fst_lightning.reports.html.svg import (
    SHADE,
    Scale,
    Series,
    bar_chart,
    dot_chart,
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
    assert [float(cell.get("fill-opacity", "")) for cell in cells] == [SHADE / 2, SHADE]
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
        names=[((0.5, 1.0), "here"), ((1.0, 0.0), "edge")],
    )
    ends = [(54.0, 282.0), (426.0, 6.0)]
    assert [tuple(numbers(c, "cx", "cy")) for c in parts(svg, "circle")] == ends
    assert path(parts(svg, "polyline", "frontier")[0]) == ends
    here, edge = (numbers(e, "x", "y") for e in parts(svg, "text", "over"))
    assert here == [240, 10]
    assert edge[0] < 426 - 2 * 5  # not cut


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=6))
def test_labels_overlap_neither_each_other_nor_points(places: list[tuple[int, int]]) -> None:
    xs, ys = [float(x) for x, _ in places], [float(y) for _, y in places]
    svg = scatter(
        [Series("", ys, xs, 0, ["word"] * len(places))],
        title="t",
        x_range=(-2, 14),
        y_range=(-2, 14),
    )
    dots = [numbers(e, "cx", "cy", "r") for e in parts(svg, "circle")]
    boxes = [(x - r, y - r, x + r, y + r) for x, y, r in dots]
    for x, y in (numbers(e, "x", "y") for e in parts(svg, "text", "beside")):
        label = (x, y - 8, x + 4 * 5.5, y)
        for a, b, c, d in boxes:
            assert label[0] >= c or label[2] <= a or label[1] >= d or label[3] <= b
        boxes.append(label)
        assert label[0] >= 0
        assert label[2] <= 440


def test_names_on_one_place_step_aside() -> None:
    names = [((0.5, 0.5), "cat"), ((0.5, 0.5), "dog"), ((0.5, 0.5), "hen"), ((0.0, 0.9), "owl")]
    svg = scatter([], title="t", names=names, x_range=(0, 1), y_range=(0, 1))
    heights = {e.text: float(e.get("y", "nan")) for e in parts(svg, "text", "over")}
    apart = sorted(heights[name] for name in ("cat", "dog", "hen"))
    assert all(b - a >= 11 for a, b in itertools.pairwise(apart))
    assert heights["cat"] == apart[1]  # the first one stays where it is


def test_whiskers_reach_over_the_intervals_and_stay_inside() -> None:
    whole = Series("", [0.5], [0.5], intervals=[((0.25, 0.75), (-9.0, 0.9))])
    (whisker,) = parts(
        scatter([whole], title="t", x_range=(0, 1), y_range=(0, 1)), "path", "whisker"
    )
    (dot,) = parts(scatter([whole], title="t", x_range=(0, 1), y_range=(0, 1)), "circle")
    x, y = numbers(dot, "cx", "cy")
    found = [float(n) for n in re.findall(r"-?[\d.]+", whisker.get("d", ""))]
    left, right, bottom, top = 54, 440 - 14, 320 - 38, 6  # of the chart without labels
    expected = [left + (right - left) / 4, y, left + 3 * (right - left) / 4]
    expected += [x, bottom, bottom + 0.9 * (top - bottom)]
    assert found == pytest.approx(expected, abs=0.02)


def test_dots_lie_where_their_values_are() -> None:
    series = [
        Series("before", [90.0, 80.0], style=5, intervals=[((85.0, 95.0), None)] * 2),
        Series("after", [95.0, math.nan], labels=["95.0", ""]),
    ]
    svg = dot_chart(["cat", "dog"], series, title="t", x_range=(70, 100), x_label="x")
    row = [e for e in parts(svg, "circle") if float(e.get("cy", "0")) > 30]  # not the legend's
    places = sorted(numbers(e, "cx", "cy") for e in row)
    ticks_at = {e.text: float(e.get("x", "nan")) for e in parts(svg, "text", "tick")}
    unit = (ticks_at["100"] - ticks_at["80"]) / 20
    assert [x for x, _ in places] == pytest.approx(
        [ticks_at["80"] + unit * d for d in (0, 10, 15)], abs=0.03
    )
    ends = [float(n) for n in re.findall(r"[\d.]+", parts(svg, "path", "whisker")[0].get("d", ""))]
    assert ends[2] - ends[0] == pytest.approx(10 * unit, abs=0.03)
    assert places[1][1] < places[2][1] < places[0][1]  # before above after; cat above dog
    assert len({y for _, y in places}) == 3


@pytest.mark.parametrize("chart", ["line", "bar", "dot", "heat", "scatter"])
def test_names_are_text(chart: str) -> None:
    evil = '</text><script>alert("1")</script>&\u202e\x00'
    series = [Series(evil, [1.0], labels=[evil])]
    svg = {
        "line": lambda: line_chart(series, title=evil, x_label=evil, y_label=evil),
        "bar": lambda: bar_chart([evil], series, title=evil, texts=[[evil]], x_label=evil),
        "dot": lambda: dot_chart([evil], series, title=evil, x_label=evil),
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
