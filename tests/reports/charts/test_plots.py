"""Charts have their values where a ruler finds them."""

import itertools
import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fst_lightning.reports.charts.chart import Chart
from fst_lightning.reports.charts.palette import SHADE
from fst_lightning.reports.charts.plots import (
    Series,
    bar_chart,
    dot_chart,
    heat_map,
    line_chart,
    scatter,
)

EVIL = '</text><script>alert("1")</script>&\u202e\x00 $x_1$ $\\frac{'
LINK = "{http://www.w3.org/1999/xlink}href"


def tree(chart: Chart) -> ET.Element:
    """The SVG of a page, which names the prefix of its links as HTML does."""
    text = chart.svg().replace("<svg ", '<svg xmlns:xlink="http://www.w3.org/1999/xlink" ', 1)
    return ET.fromstring(text)


def groups(chart: Chart, kind: str) -> list[ET.Element]:
    return [element for element in tree(chart).iter("g") if element.get("class") == kind]


def numbers(path: ET.Element) -> list[tuple[float, float]]:
    """The corners of a path."""
    found = [float(text) for text in re.findall(r"-?[\d.]+", path.get("d", ""))]
    return list(zip(found[::2], found[1::2], strict=True))


def marks(group: ET.Element) -> list[tuple[float, float]]:
    """Where the markers of a series are."""
    return [(float(use.get("x", "nan")), float(use.get("y", "nan"))) for use in group.iter("use")]


def texts(chart: Chart) -> dict[str, tuple[float, float]]:
    return {
        text.text or "": (float(text.get("x", "nan")), float(text.get("y", "nan")))
        for text in tree(chart).iter("text")
    }


def near(found: object, expected: object, within: float = 0.02) -> None:
    np.testing.assert_allclose(np.array(found, float), np.array(expected, float), atol=within)


def test_a_line_lies_where_its_values_are() -> None:
    """Width 420, height 250, numbers at the left (54) and below (40): (0, 0) is at (54, 210)."""
    chart = line_chart([Series("", [0.0, 0.5, 1.0], [0, 5, 10])], title="t", y_range=(0, 1))
    (line,) = groups(chart, "line")
    expected = [(54, 210), (230, 109), (406, 8)]
    near(numbers(next(line.iter("path"))), expected)
    near(marks(line), expected)


def test_a_gap_breaks_a_line() -> None:
    values = [0.0, 1.0, None, 3.0, math.nan, 5.0, 6.0, math.inf]
    (line,) = groups(line_chart([Series("", values)], title="t"), "line")
    assert next(line.iter("path")).get("d", "").count("L") == 2  # from 0 to 1 and from 5 to 6
    assert len(marks(line)) == 5


def test_a_long_line_has_few_markers_and_one_at_its_end() -> None:
    values = [float(i) for i in range(300)]
    (line,) = groups(line_chart([Series("", values)], title="t", y_range=(0, 299)), "line")
    found = marks(line)
    assert 20 <= len(found) <= 30
    near([found[0], found[-1]], [(54, 210), (406, 8)])


def test_a_flat_line_and_no_line_can_be_drawn() -> None:
    (flat,) = groups(line_chart([Series("", [7.0, 7.0])], title="t"), "line")
    near([y for _, y in marks(flat)], [109, 109])  # the middle of 8 and 210
    for values in ([None], []):
        assert "<svg" in line_chart([Series("", values)], title="t").svg()


def test_ticks_of_epochs_are_whole() -> None:
    chart = line_chart([Series("", [0.0, 1.0, 2.0], [1, 2, 3])], title="t", whole=True)
    found = [(text.text, float(text.get("y", "nan"))) for text in tree(chart).iter("text")]
    assert [name for name, y in found if y > 215] == ["1", "2", "3"]


def test_bars_are_as_long_as_their_values() -> None:
    chart = bar_chart(["a", "b"], [50.0, -25.0], title="t", x_range=(-50, 50), texts=["x", "y"])
    first, second = (numbers(next(bar.iter("path"))) for bar in groups(chart, "bar"))
    (low, high), (left, right) = (
        (min(x for x, _ in bar), max(x for x, _ in bar)) for bar in (first, second)
    )
    assert high - low == pytest.approx(2 * (right - left), abs=0.03)  # 50 and 25
    assert low == pytest.approx(right, abs=0.03)  # both from zero
    assert texts(chart)["x"][0] == pytest.approx(high + 4, abs=0.03)


def test_dots_lie_where_their_values_are() -> None:
    series = [
        Series("before", [90.0, 80.0], style=5, intervals=[((85.0, 95.0), None)] * 2),
        Series("after", [95.0, math.nan], labels=["95.0", ""]),
    ]
    chart = dot_chart(["cat", "dog"], series, title="t", x_range=(70, 100), x_label="x")
    before, after = (marks(group) for group in groups(chart, "marks"))
    places = texts(chart)
    unit = (places["100"][0] - places["80"][0]) / 20
    near([x for x, _ in (*before, *after)], [places["80"][0] + unit * d for d in (10, 0, 15)], 0.05)
    ends = numbers(next(groups(chart, "whisker")[0].iter("path")))
    assert ends[1][0] - ends[0][0] == pytest.approx(10 * unit, abs=0.05)
    assert before[0][1] < after[0][1] < before[1][1]  # before above after, cat above dog
    assert len(after) == 1


def test_cells_are_as_dark_as_their_values() -> None:
    written = [["0", "5"], ["", "10"]]
    links: list[list[str | None]] = [[None, None], [None, "./0/report.html"]]
    chart = heat_map(
        [[0.0, 0.5], [None, 1.0]], ["a", "b"], ["c", "d"], title="t", texts=written, links=links
    )
    (cells,) = groups(chart, "cells")
    shades = [re.findall(r"fill-opacity: ([\d.]+)", e.get("style", "")) for e in cells.iter("path")]
    assert [float(shade[0]) for shade in shades] == [SHADE / 2, SHADE]
    corners = numbers(list(cells.iter("path"))[1])
    low, high = min(corners), max(corners)
    near([high[0] - low[0], high[1] - low[1]], [34, 34])
    near(texts(chart)["10"], [low[0] + 17, low[1] + 21], within=1.5)
    assert {text for text in texts(chart) if text.isdigit()} == {"0", "5", "10"}
    (link,) = tree(chart).iter("a")
    assert link.attrib == {LINK: "./0/report.html"}
    assert "".join(link.itertext()) == "10"


def test_a_large_matrix_stays_small() -> None:
    count = 100
    names = [f"class {i}" for i in range(count)]
    values = [[float(i == j) for j in range(count)] for i in range(count)]
    chart = heat_map(values, names, names, title="t", texts=[["1"] * count] * count)
    assert float(tree(chart).get("width", "")) < 600
    (cells,) = groups(chart, "cells")
    assert len(list(cells.iter("path"))) == count
    assert not groups(chart, "value")


def test_points_names_and_frontier_lie_on_one_another() -> None:
    chart = scatter(
        [Series("", [0.0, 1.0], [0.0, 1.0])],
        title="t",
        x_range=(0, 1),
        y_range=(0, 1),
        frontier=[(0.0, 0.0), (1.0, 1.0)],
        names=[((0.5, 1.0), "here"), ((1.0, 0.0), "edge")],
    )
    ends = [(54.0, 280.0), (406.0, 8.0)]
    near(marks(groups(chart, "marks")[0]), ends)
    near(numbers(next(groups(chart, "frontier")[0].iter("path"))), ends)
    assert texts(chart)["here"][0] == pytest.approx(230)
    assert texts(chart)["edge"][0] < 406 - 2 * 5  # not cut


@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=16))
def test_labels_cover_neither_each_other_nor_points(places: list[tuple[int, int]]) -> None:
    xs, ys = [float(x) for x, _ in places], [float(y) for _, y in places]
    names = [f"word {i}" for i in range(len(places))]
    chart = scatter([Series("", ys, xs, 0, names)], title="t", x_range=(-2, 14), y_range=(-2, 14))
    found = texts(chart)
    heights = sorted(found[name][1] for name in names)
    assert all(b - a > 13.5 for a, b in itertools.pairwise(heights))
    right = max(x for x, _ in marks(groups(chart, "marks")[0]))
    width = float(tree(chart).get("width", ""))
    for name in names:
        assert right + 10 < found[name][0] < width - 6 * len(name)
    # The higher a point, the higher its label: lines to points one above the other do not cross.
    order = sorted(range(len(places)), key=lambda i: -ys[i])
    assert [ys[i] for i in sorted(order, key=lambda i: found[names[i]][1])] == [
        ys[i] for i in order
    ]


def test_names_on_one_place_step_aside() -> None:
    names = [((0.5, 0.5), "cat"), ((0.5, 0.5), "dog"), ((0.5, 0.5), "hen"), ((0.0, 0.9), "owl")]
    chart = scatter([], title="t", names=names, x_range=(0, 1), y_range=(0, 1))
    heights = {name: texts(chart)[name][1] for name in ("cat", "dog", "hen")}
    apart = sorted(heights.values())
    assert all(b - a >= 11 for a, b in itertools.pairwise(apart))
    assert heights["cat"] == apart[1]  # the first one stays where it is


def test_whiskers_reach_over_the_intervals_and_stay_inside() -> None:
    series = Series("", [0.5], [0.5], intervals=[((0.25, 0.75), (-9.0, 0.9))])
    chart = scatter([series], title="t", x_range=(0, 1), y_range=(0, 1))
    across, along = (numbers(next(group.iter("path"))) for group in groups(chart, "whisker"))
    left, right, bottom, top = 54, 406, 280, 8  # of the plot
    near(across, [(left + (right - left) / 4, 144), (left + 3 * (right - left) / 4, 144)])
    near(along, [(230, bottom), (230, bottom + 0.9 * (top - bottom))])


@pytest.mark.parametrize("kind", ["line", "bar", "dot", "heat", "scatter"])
def test_names_are_text(kind: str) -> None:
    series = [Series(EVIL, [1.0], labels=[EVIL])]
    chart = {
        "line": lambda: line_chart(series, title=EVIL, x_label=EVIL, y_label=EVIL),
        "bar": lambda: bar_chart([EVIL], [1.0], title=EVIL, texts=[EVIL], x_label=EVIL),
        "dot": lambda: dot_chart([EVIL], series, title=EVIL, x_label=EVIL),
        "heat": lambda: heat_map([[1.0]], [EVIL], [EVIL], title=EVIL, texts=[[EVIL]]),
        "scatter": lambda: scatter(series, title=EVIL, names=[((0, 1), EVIL)]),
    }[kind]()
    found = tree(chart)
    allowed = {"svg", "g", "text", "path", "use", "defs", "a"}
    assert {element.tag for element in found.iter()} <= allowed
    shown = "".join(found.itertext())
    assert "<scri" in shown  # of a long name, both ends
    assert "\u202e" not in chart.svg()
    assert "\x00" not in chart.svg()
