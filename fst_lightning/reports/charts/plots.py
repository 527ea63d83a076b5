"""Draws lines, points, bars, dots and heat maps from plain numbers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeGuard

from fst_lightning.printable import printable
from fst_lightning.reports.charts.chart import CLASS, Chart, drawing
from fst_lightning.reports.charts.palette import DASHES, DAY, MARKERS, RING, SHADE, STYLES
from fst_lightning.reports.numbers import minus
from fst_lightning.reports.text import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = tuple[float, float]

_MARGIN = 10.0
_LINE = 15.0
"""The height of a line of text, in pixels."""


@dataclass(frozen=True)
class Series:
    """Values that are drawn as one line or one cloud of points.

    Args:
        name: For the legend. "" leaves it out.
        y: The values. None, NaN and infinities leave a gap.
        x: The places, as many. The default is 0, 1, 2 and so on.
        style: The number of its color, dashes and marker, from 0.
        labels: Texts that belong to the points, for charts that show them.
        intervals: The ranges of each point in x and in y, drawn as lines through it. None leaves
            one out.
    """

    name: str
    y: Sequence[float | None]
    x: Sequence[float] = ()
    style: int = 0
    labels: Sequence[str] = ()
    intervals: Sequence[tuple[Point | None, Point | None]] = ()

    def points(self) -> list[Point]:
        """The places and values. Both are NaN where there is a gap."""
        places = self.x or range(len(self.y))
        return [
            (float(x), float(y)) if _finite(x) and _finite(y) else (math.nan, math.nan)
            for x, y in zip(places, self.y, strict=True)
        ]


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str = "",
    y_label: str = "",
    x_range: Point | None = None,
    y_range: Point | None = None,
    whole: bool = False,
    width: float = 420,
    height: float = 250,
) -> Chart:
    r"""Draw lines with markers.

    Args:
        series: The lines. A gap breaks a line.
        title: For screen readers.
        x_label: Under the axis.
        y_label: Over the axis.
        x_range: First and last place. None takes those of the data.
        y_range: Least and greatest value. None takes those of the data.
        whole: Whether places are whole numbers.
        width: In pixels.
        height: In pixels.

    Example:
        >>> line_chart([Series("CA", [0.0, 1.0])], title="CA").svg().count('class="line"')
        1
    """
    with drawing():
        points = [point for one in series for point in one.points()]
        figure, axes = _plot(
            series, points, width, height, x_label, y_label, x_range, y_range, lines=True
        )
        _ticks(axes, whole)
        for one in series:
            x, y = zip(*one.points(), strict=True) if len(one.y) else ((), ())
            there = [i for i, value in enumerate(y) if _finite(value)]
            # About 25 markers for a line. Both ends have one.
            every = max(1, len(there) // 25)
            shown = sorted({*there[::every], *there[-1:]})
            axes.plot(x, y, markevery=shown, gid=f"{CLASS}line", **_look(one.style, lines=True))
    return Chart(title, figure)


def scatter(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str = "",
    y_label: str = "",
    x_range: Point | None = None,
    y_range: Point | None = None,
    frontier: Sequence[Point] = (),
    names: Sequence[tuple[Point, str]] = (),
    axes: bool = True,
    radius: float = 3.0,
    width: float = 420,
    height: float = 320,
) -> Chart:
    """Draw points. Their labels stand beside the plot, at the end of a thin line.

    Args:
        series: The clouds of points.
        title: For screen readers.
        x_label: Under the axis.
        y_label: Over the axis.
        x_range: Least and greatest place. None takes those of the data.
        y_range: Least and greatest value. None takes those of the data.
        frontier: A line through these points, under the others.
        names: Texts that stand on a place, over the points.
        axes: False leaves out numbers that mean nothing.
        radius: Of a marker, in pixels.
        width: In pixels, without the labels beside the plot.
        height: In pixels.
    """
    labeled = [
        (point, label)
        for one in series
        for point, label in zip(one.points(), one.labels, strict=False)
        if label and _finite(point[1])
    ]
    room = max((_width(shorten(text, 60)) + 26 for _, text in labeled), default=0.0)
    with drawing():
        every = [*(point for one in series for point in one.points()), *frontier]
        figure, plot = _plot(
            series,
            every,
            width + room,
            height,
            x_label,
            y_label,
            x_range,
            y_range,
            room,
            bare=not axes,
        )
        if axes:
            _ticks(plot)
        if frontier:
            _dashed(plot, *zip(*frontier, strict=True))
        for one in series:
            points = one.points()
            for (x, y), (across, along) in zip(points, one.intervals, strict=False):
                if across and _finite(y):
                    _whisker(plot, _inside(across, plot.get_xlim()), (y, y), one.style)
                if along and _finite(y):
                    _whisker(plot, (x, x), _inside(along, plot.get_ylim()), one.style)
        for one in series:
            points = one.points()
            look = _look(one.style, radius=radius)
            plot.plot([x for x, _ in points], [y for _, y in points], gid=f"{CLASS}marks", **look)
        _beside(plot, labeled)
        _over(plot, names)
    return Chart(title, figure)


def bar_chart(
    labels: Sequence[str],
    values: Sequence[float | None],
    *,
    title: str,
    style: int = 0,
    texts: Sequence[str] = (),
    x_range: Point | None = None,
    x_label: str = "",
    limit: float | None = None,
    width: float = 420,
) -> Chart:
    """Draw a horizontal bar per label, from zero.

    Args:
        labels: The names of the bars.
        values: Their lengths. None leaves a bar out.
        title: For screen readers.
        style: The number of their color.
        texts: What stands at the end of each bar. The default is nothing.
        x_range: Of the values. None takes that of the data and zero.
        x_label: Under the axis.
        limit: A value that a dashed line marks. None draws no line.
        width: In pixels.
    """
    numbers = [float(value) if _finite(value) else math.nan for value in values]
    known = [0.0, *filter(_finite, numbers), *([] if limit is None else [limit])]
    low, high = x_range or (min(known), max(known))
    high = high if high > low else low + 1.0
    room = min(width / 4, max((_width(text) + 6 for text in texts), default=0.0))
    with drawing():
        figure, axes = _rows(labels, 22.0, 0.0, width, room, x_label, (low, high))
        axes.barh(
            range(len(labels)),
            numbers,
            height=0.55,
            color=DAY[f"c{style % STYLES}"],
            gid=f"{CLASS}bar",
            clip_on=False,
        )
        for row, (value, text) in enumerate(zip(numbers, texts, strict=False)):
            if _finite(value) and text:
                _text(axes, (max(value, 0.0), row), text, offset=(4, 0), va="center_baseline")
        axes.axvline(0.0, color=DAY["soft"], linewidth=1.2, clip_on=False)
        if limit is not None:
            _dashed(axes, (limit, limit), axes.get_ylim())
    return Chart(title, figure)


def dot_chart(
    labels: Sequence[str],
    series: Sequence[Series],
    *,
    title: str,
    x_range: Point | None = None,
    x_label: str = "",
    limit: float | None = None,
    width: float = 420,
) -> Chart:
    """Draw a row per label, and in it a dot with its interval per series. Zero may be out of sight.

    Args:
        labels: The names of the rows.
        series: The dots of each row: ``y`` are the values, of ``intervals`` the first counts, and
            ``labels`` stand at the right.
        title: For screen readers.
        x_range: Of the values. None takes that of the data.
        x_label: Under the axis.
        limit: A value that a dashed line marks. None draws no line.
        width: In pixels.
    """
    values = [float(value) for one in series for value in one.y if _finite(value)]
    ends = [end for one in series for across, _ in one.intervals if across for end in across]
    span = x_range or _span([*values, *ends, *([] if limit is None else [limit])], 0.05)
    room = max((_width(text) + 12 for one in series for text in one.labels), default=0.0)
    room = min(width / 4, room)
    step = 12.0
    tall = step * len(series) + 9
    with drawing():
        figure, axes = _rows(
            labels, tall, _legend_height(series, width), width, room, x_label, span
        )
        for row in range(1, len(labels)):
            axes.axhline(row - 0.5, color=DAY["line"], linewidth=1, clip_on=False)
        for i, one in enumerate(series):
            offset = step / tall * (i - (len(series) - 1) / 2)
            places = [row + offset for row in range(len(labels))]
            for place, (across, _) in zip(places, one.intervals, strict=False):
                if across:
                    _whisker(axes, _inside(across, span), (place, place), one.style)
            dots = [float(value) if _finite(value) else math.nan for value in one.y]
            axes.plot(dots, places, gid=f"{CLASS}marks", **_look(one.style, radius=3.4))
            for place, text in zip(places, one.labels, strict=False):
                right = axes.get_xlim()[1]
                _text(
                    axes, (right, place), text, offset=(room, 0), ha="right", va="center_baseline"
                )
        if limit is not None:
            _dashed(axes, (limit, limit), axes.get_ylim())
        _legend(figure, series, width)
    return Chart(title, figure)


def heat_map(
    values: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    texts: Sequence[Sequence[str]] = (),
    links: Sequence[Sequence[str | None]] = (),
    value_range: Point = (0.0, 1.0),
    row_label: str = "",
    column_label: str = "",
    cell: Point | None = None,
    style: int = 0,
    name_length: int = 26,
) -> Chart:
    """Draw a matrix, darker where a value is greater, with texts in its cells.

    Args:
        values: Row by row. None leaves a cell empty.
        rows: The names of the rows.
        columns: The names of the columns.
        title: For screen readers.
        texts: What stands in the cells. Text that does not fit is left out.
        links: The addresses that the texts lead to. None is no link.
        value_range: The values of the palest and of the darkest cell.
        row_label: What the rows are.
        column_label: What the columns are.
        cell: Width and height of a cell in pixels. None draws squares that fit.
        style: The number of the color, 0 to 2.
        name_length: How many characters of a name are shown.
    """
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import to_rgba

    size = min(34.0, max(3.0, 360 / max(1, len(rows), len(columns))))
    wide, tall = cell or (size, size)
    heads = [shorten(name, name_length) for name in columns]
    head = max(map(_width, heads), default=0.0)
    turned = head > wide - 4
    left = 8 + max((_width(shorten(name, name_length)) for name in rows), default=0.0)
    left += 20 if row_label else 0
    top = (8 + 0.72 * head if turned else 20) + (20 if column_label else 0)
    inner = (max(wide * len(columns), 1.0), max(tall * len(rows), 1.0))
    width = left + inner[0] + _MARGIN + (0.72 * head if turned else 0)
    low, high = value_range
    with drawing():
        figure, axes = _canvas(
            width, top + inner[1] + _MARGIN, (left, top, left + inner[0], top + inner[1])
        )
        axes.set(xlim=(0, max(len(columns), 1)), ylim=(max(len(rows), 1), 0))
        squares, colors = [], []
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                if not _finite(value):
                    continue
                share = min(1.0, max(0.0, (value - low) / (high - low)))
                if share > 0:
                    squares.append([(j, i), (j + 1, i), (j + 1, i + 1), (j, i + 1)])
                    colors.append(to_rgba(DAY[f"h{style}"], SHADE * share))
                text = texts[i][j] if texts else ""
                if text and tall >= 13 and _width(text) <= wide:
                    link = links[i][j] if links else None
                    _text(axes, (j + 0.5, i + 0.5), text, ha="center", url=link, gid="value")
        axes.add_collection(
            PolyCollection(squares, facecolors=colors, edgecolors="none", gid=f"{CLASS}cells"),
            autolim=False,
        ).set_clip_on(False)
        every = math.ceil(13 / tall), math.ceil(13 / wide)
        for i, name in list(enumerate(rows))[:: every[0]]:
            _text(axes, (0, i + 0.5), shorten(name, name_length), offset=(-6, 0), ha="right")
        for j, name in list(enumerate(heads))[:: every[1]]:
            spin: dict[str, Any] = {"rotation": 45, "rotation_mode": "anchor", "va": "baseline"}
            look = spin if turned else {"ha": "center", "va": "baseline"}
            _text(axes, (j + 0.5, 0), name, offset=(0, 6), **look)
        for spine in axes.spines.values():
            spine.set(visible=True, color=DAY["line"], linewidth=1)
        axes.set(xticks=[], yticks=[])
        soft = {"color": DAY["soft"], "ha": "center", "va": "center"}
        if column_label:
            figure.text(
                (left + inner[0] / 2) / width,
                1 - 9 / (top + inner[1] + _MARGIN),
                column_label,
                **soft,
            )
        if row_label:
            middle = 1 - (top + inner[1] / 2) / (top + inner[1] + _MARGIN)
            figure.text(10 / width, middle, row_label, rotation=90, **soft)
    return Chart(title, figure)


# Layout, in pixels


def _canvas(width: float, height: float, box: tuple[float, float, float, float]) -> Any:
    """A figure with one plot. The box is left, top, right and bottom."""
    from matplotlib.figure import Figure

    left, top, right, bottom = box
    figure = Figure((width / 72, height / 72))
    place = (left / width, 1 - bottom / height, (right - left) / width, (bottom - top) / height)
    return figure, figure.add_axes(place, facecolor="none")


def _plot(
    series: Sequence[Series],
    points: Sequence[Point],
    width: float,
    height: float,
    x_label: str,
    y_label: str,
    x_range: Point | None,
    y_range: Point | None,
    room: float = 0.0,
    *,
    bare: bool = False,
    lines: bool = False,
) -> tuple[Figure, Axes]:
    """A plot with two axes, and its legend above it; ``room`` is left free at the right."""
    top = _legend_height(series, width) + (22 if y_label else 8)
    left, bottom = (8.0, height - 8) if bare else (54.0, height - 40)
    figure, axes = _canvas(width, height, (left, top, width - 14 - room, bottom))
    known = [point for point in points if _finite(point[0])]
    axes.set_xlim(x_range or _span([x for x, _ in known], 0.04 if bare else 0.0))
    axes.set_ylim(y_range or _span([y for _, y in known], 0.05))
    if bare:
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(visible=True, color=DAY["line"], linewidth=1)
    else:
        axes.grid(axis="y", clip_on=False)
    if x_label:
        axes.set_xlabel(printable(x_label), labelpad=4)
    if y_label:
        figure.text(4 / width, 1 - (top - 12) / height, printable(y_label), color=DAY["soft"])
    _legend(figure, series, width, lines)
    return figure, axes


def _rows(
    labels: Sequence[str],
    tall: float,
    top: float,
    width: float,
    room: float,
    x_label: str,
    span: Point,
) -> tuple[Figure, Axes]:
    """A plot with a named row per label, each ``tall`` pixels high."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    names = [shorten(label, 34) for label in labels]
    left = min(220.0, 14 + max(map(_width, names), default=1.0))
    bottom = top + 8 + tall * max(1, len(labels))
    height = bottom + (40 if x_label else 24)
    figure, axes = _canvas(width, height, (left, top + 8, width - 14 - room, bottom))
    axes.set(xlim=span, ylim=(max(1, len(labels)) - 0.5, -0.5))
    axes.set_yticks(range(len(labels)), names)
    axes.tick_params(axis="y", labelcolor=DAY["ink"], labelsize=11)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(_number))
    axes.grid(axis="x", clip_on=False)
    axes.spines["bottom"].set_visible(False)
    if x_label:
        axes.set_xlabel(printable(x_label), labelpad=4)
    return figure, axes


def _ticks(axes: Axes, whole: bool = False) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for axis, most in ((axes.xaxis, 8), (axes.yaxis, 5)):
        integer = whole and axis is axes.xaxis
        axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 5, 10], integer=integer))
        axis.set_major_formatter(FuncFormatter(_number))


def _number(value: float, _: object = None) -> str:
    return minus(f"{value + 0.0:.6g}")


def _legend_height(series: Sequence[Series], width: float) -> float:
    columns, rows, _ = _legend_shape(series, width)
    return _LINE * rows + 8 if columns else 0.0


def _legend_shape(series: Sequence[Series], width: float) -> tuple[int, int, list[str]]:
    """Columns, rows and the names: as many columns as fit."""
    names = [shorten(one.name, 40) for one in series if one.name]
    if not names:
        return 0, 0, []
    columns = max(1, min(len(names), int(width / (max(map(_width, names)) + 42))))
    return columns, math.ceil(len(names) / columns), names


def _legend(figure: Figure, series: Sequence[Series], width: float, lines: bool = False) -> None:
    from matplotlib.lines import Line2D

    columns, _, names = _legend_shape(series, width)
    if columns:
        handles = [Line2D([], [], **_look(one.style, lines=lines)) for one in series if one.name]
        place = (8 / width, 1.0)
        figure.legend(handles, names, ncols=columns, loc="upper left", bbox_to_anchor=place)


def _look(style: int, *, lines: bool = False, radius: float = 3.0) -> dict[str, Any]:
    """How a series is drawn: its color, its marker and its dashes."""
    style %= STYLES
    color = DAY[f"c{style}"]
    open_marker = MARKERS[style] == "x" or style == RING
    return {
        "color": color,
        "linestyle": DASHES[style] if lines else "none",
        "marker": MARKERS[style],
        "markersize": 2 * radius,
        "markerfacecolor": "none" if style == RING else color,
        "markeredgecolor": color if open_marker else "none",
        "markeredgewidth": 1.4 if open_marker else 0.0,
        "clip_on": False,
    }


def _dashed(axes: Axes, x: Sequence[float], y: Sequence[float]) -> None:
    axes.plot(
        x,
        y,
        color=DAY["soft"],
        linewidth=1.5,
        linestyle=(0, (2, 2)),
        clip_on=False,
        gid=f"{CLASS}frontier",
        zorder=1.5,
    )


def _whisker(axes: Axes, x: Point, y: Point, style: int) -> None:
    color = DAY[f"c{style % STYLES}"]
    axes.plot(x, y, color=color, linewidth=1.3, alpha=0.75, clip_on=False, gid=f"{CLASS}whisker")


def _inside(ends: Point, span: Point) -> Point:
    return max(min(ends[0], span[1]), span[0]), max(min(ends[1], span[1]), span[0])


def _text(
    axes: Axes,
    place: Point,
    text: str,
    *,
    offset: Point = (0, 0),
    url: str | None = None,
    gid: str | None = None,
    **look: Any,
) -> None:
    """Write beside a place; the offset is in pixels, to the right and up."""
    axes.annotate(
        printable(text),
        place,
        xytext=offset,
        textcoords="offset points",
        annotation_clip=False,
        url=url,
        gid=gid and f"{CLASS}{gid}",
        **{"va": "center_baseline", **look},
    )


def _beside(axes: Axes, labeled: Sequence[tuple[Point, str]]) -> None:
    """Write the labels in a column right of the plot, in the order of their points.

    A thin line leads from each point to its label. No label covers a point or another label.
    """
    if not labeled:
        return
    box = axes.get_window_extent()
    placed = sorted(labeled, key=lambda item: -item[0][1])
    wanted = [float(axes.transData.transform(point)[1]) for point, _ in placed]
    heights = _apart(wanted, _LINE - 1, box.y0, box.y1)
    for (point, label), height in zip(placed, heights, strict=True):
        axes.annotate(
            shorten(label, 60),
            point,
            xytext=(box.x1 + 20, height),
            textcoords="figure pixels",
            va="center_baseline",
            annotation_clip=False,
            gid=f"{CLASS}beside",
            arrowprops={
                "arrowstyle": "-",
                "color": DAY["soft"],
                "linewidth": 0.7,
                "shrinkA": 3,
                "shrinkB": 5,
                "relpos": (0, 0.5),
                "clip_on": False,
            },
        )


def _apart(wanted: Sequence[float], step: float, low: float, high: float) -> list[float]:
    """Move heights, given from high to low, as little as needed until they are a step apart.

    Example:
        >>> _apart([50, 50, 10], 10, 0, 60)
        [50.0, 40.0, 10.0]
    """
    heights: list[float] = []
    for height in wanted:
        limit = heights[-1] - step if heights else high
        heights.append(min(float(height), limit))
    for i in reversed(range(len(heights))):  # what was pushed out at the bottom comes back
        least = low if i == len(heights) - 1 else heights[i + 1] + step
        heights[i] = max(heights[i], least)
    return heights


def _over(axes: Axes, names: Sequence[tuple[Point, str]]) -> None:
    """Write every name on its place, or a little above or below if another one stands there."""
    box = axes.get_window_extent()
    taken: list[tuple[float, float, float]] = []  # left, right, height
    for point, name in names:
        text = shorten(name, 14)
        x, y = map(float, axes.transData.transform(point))
        half = _width(text) / 2 + 2
        x = min(max(x, box.x0 + half), box.x1 - half)
        steps = (0, 12, -12, 24, -24)
        crowded = {
            step: sum(
                x - half < right and x + half > left and abs(y + step - height) < 12
                for left, right, height in taken
            )
            for step in steps
        }
        y += min(steps, key=lambda step: crowded[step])
        taken.append((x - half, x + half, y))
        axes.annotate(
            text,
            (x, y),
            xycoords="figure pixels",
            ha="center",
            va="center_baseline",
            weight="bold",
            annotation_clip=False,
            gid=f"{CLASS}over",
            bbox={
                "boxstyle": "round,pad=0.1",
                "facecolor": DAY["paper"],
                "edgecolor": "none",
                "alpha": 0.7,
            },
        )


@cache
def _width(text: str) -> float:
    """The width of a text in pixels, in the font of the files."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family="DejaVu Sans", size=11)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # for letters that the font lacks
        return float(
            text_to_path.get_text_width_height_descent(printable(text), font, ismath=False)[0]
        )


def _span(values: Sequence[float], margin: float) -> Point:
    """The range of values, a little wider, and never empty."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if high - low < 1e-5 * max(abs(low), abs(high)) or high == low:  # rounding, no curve
        reach = 0.5 * (abs(low) or 1.0)
        return low - reach, high + reach
    return low - margin * (high - low), high + margin * (high - low)


def _finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)
