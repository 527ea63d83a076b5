"""Charts as SVG text: lines, bars, heat maps, scatter plots; no library, no script, no network.

Colours and fonts come from the style sheet of the page (:mod:`fst_lightning.reports.html.pages`).
Every series also has a line style and a marker of its own, so that a grey print can be read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from fst_lightning.reports.html.pages import escape, shorten

Point = tuple[float, float]
_Box = tuple[float, float, float, float]  # left, top, right, bottom

STYLES = 6
"""How many series can be told apart; a seventh looks like the first."""

_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 4", "1 2")
SHADE = 0.6  # The darkest cell of a heat map: text stays readable on it, by day and by night.
_CHARACTER = 6.4  # About the width of one in the charts' font, in pixels.


@dataclass(frozen=True)
class Series:
    """What is drawn as one line, one cloud of points or one row of bars.

    Args:
        name: for the legend; "" for none.
        y: the values; None, NaN and infinities leave a gap.
        x: the places, as many; 0, 1, 2 and so on where left out.
        style: the number of its colour, dashes and marker; from 0.
        labels: texts at the points of a scatter plot, or nothing.
        intervals: from where to where its points may lie, in x and in y, drawn as lines through
            them in a scatter plot or a dot chart; None for none.
    """

    name: str
    y: Sequence[float | None]
    x: Sequence[float] = ()
    style: int = 0
    labels: Sequence[str] = ()
    intervals: Sequence[tuple[Point | None, Point | None]] = ()

    def points(self) -> list[Point | None]:
        """The places and values, None where there is a gap."""
        places = self.x or range(len(self.y))
        return [
            (float(x), float(y)) if _finite(x) and _finite(y) else None
            for x, y in zip(places, self.y, strict=True)
        ]


@dataclass(frozen=True)
class Scale:
    r"""Maps values to pixels: :math:`p(v) = s + (e - s) (v - l) / (h - l)`.

    Args:
        low: the value at the start.
        high: the value at the end, above ``low``.
        start: the pixel of ``low``.
        end: the pixel of ``high``.

    Example:
        >>> Scale(0, 10, 100, 0)(2.5)
        75.0
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        return self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low)

    def inside(self, value: float) -> float:
        """The pixel of the nearest value that is in the range."""
        return self(min(self.high, max(self.low, value)))


def ticks(low: float, high: float, most: int = 5, whole: bool = False) -> list[float]:
    """Round numbers in a range: multiples of 1, 2 or 5 times a power of ten.

    Args:
        low: the least.
        high: the greatest, above ``low``.
        most: about how many, 2 or more.
        whole: whole numbers only.

    Example:
        >>> ticks(0, 1), ticks(-63, -54)
        ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [-62.0, -60.0, -58.0, -56.0, -54.0])
    """
    rough = (high - low) / most
    rough = max(rough, 1.0) if whole else rough
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, -math.floor(math.log10(step)))
    # Adding zero turns -0.0 into 0.0.
    return [round(number * step, digits) + 0.0 for number in range(first, last + 1)]


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str = "",
    y_label: str = "",
    x_range: Point | None = None,
    y_range: Point | None = None,
    whole: bool = False,
    width: int = 440,
    height: int = 250,
) -> str:
    """Draw lines with markers.

    Args:
        series: the lines; a gap breaks a line.
        title: for screen readers.
        x_label: under the axis.
        y_label: over the axis.
        x_range: first and last place; None for those of the data.
        y_range: least and greatest value; None for those of the data.
        whole: places are whole numbers.
        width: in pixels.
        height: in pixels.

    Example:
        >>> svg = line_chart([Series("CA", [0.0, 1.0])], title="CA")
        >>> svg.count("<polyline"), svg.count("<circle")
        (1, 3)
    """
    plot = _Plot.of(series, x_range, y_range, width, height, bool(y_label))
    parts = [plot.axes(x_label, y_label, whole)]
    for line in series:
        style = line.style % STYLES
        dashes = f' stroke-dasharray="{_DASHES[style]}"' if _DASHES[style] else ""
        for run in _unbroken(line.points()):
            places = [plot.place(point) for point in run]
            path = " ".join(f"{_number(x)},{_number(y)}" for x, y in places)
            if len(places) > 1:
                parts.append(f'<polyline class="line c{style}" points="{path}"{dashes}/>')
            # A marker for about every 25th of the width; the ends always have theirs.
            step = max(1, len(places) // 25)
            marked = {*range(0, len(places), step), len(places) - 1}
            parts += [marker(style, *places[i]) for i in sorted(marked)]
    parts.append(_legend(series, width, lines=True))
    return _svg(parts, title, width, height)


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
    width: int = 440,
    height: int = 320,
) -> str:
    """Draw points.

    Args:
        series: the clouds of points.
        title: for screen readers.
        x_label: under the axis.
        y_label: over the axis.
        x_range: least and greatest place; None for those of the data.
        y_range: least and greatest value; None for those of the data.
        frontier: a line through these points, drawn beneath the others.
        names: texts that stand on a place, drawn above the others.
        axes: False leaves numbers out, where they mean nothing.
        radius: of a marker, in pixels.
        width: in pixels.
        height: in pixels.
    """
    edge = Series("", [y for _, y in frontier], [x for x, _ in frontier])
    every = [*series, edge]
    plot = _Plot.of(every, x_range, y_range, width, height, bool(y_label), numbers=axes)
    parts = [plot.axes(x_label, y_label)]
    if frontier:
        path = " ".join(",".join(map(_number, plot.place(point))) for point in frontier)
        parts.append(f'<polyline class="frontier" points="{path}"/>')
    marks: list[str] = []
    labels: list[tuple[float, float, str]] = []
    taken: list[_Box] = []
    for cloud in series:
        texts = [*cloud.labels, *[""] * (len(cloud.y) - len(cloud.labels))]
        intervals = [*cloud.intervals, *[(None, None)] * (len(cloud.y) - len(cloud.intervals))]
        for point, text, (across, along) in zip(cloud.points(), texts, intervals, strict=True):
            if point is None:
                continue
            x, y = plot.place(point)
            parts.append(plot.whiskers(point, across, along, cloud.style % STYLES))
            marks.append(marker(cloud.style % STYLES, x, y, radius))
            taken.append((x - radius, y - radius, x + radius, y + radius))
            if text:
                labels.append((x, y, shorten(text)))
    parts += marks
    parts += [_label_at(x, y, text, radius, plot, taken) for x, y, text in labels]
    parts += _names(plot, names)
    parts.append(_legend(series, width, lines=False))
    return _svg(parts, title, width, height)


def bar_chart(
    labels: Sequence[str],
    series: Sequence[Series],
    *,
    title: str,
    texts: Sequence[Sequence[str]] = (),
    errors: Sequence[Sequence[Point | None]] = (),
    x_range: Point | None = None,
    x_label: str = "",
    width: int = 440,
) -> str:
    """Draw horizontal bars from zero, one group a label.

    Args:
        labels: the names of the groups.
        series: what each group has a bar of; ``y`` are the lengths.
        title: for screen readers.
        texts: what stands at the end of every bar, by series; nothing where left out.
        errors: an interval for every bar, by series; None for none.
        x_range: of the values; None for those of the data and zero.
        x_label: under the axis.
        width: in pixels.
    """
    lows, highs = [0.0], [0.0]
    for one in series:
        values = [float(value) for value in one.y if _finite(value)]
        lows, highs = [*lows, *values], [*highs, *values]
    low, high = x_range or (min(lows), max(highs))
    high = high if high > low else low + 1.0
    left = min(200.0, 14 + _CHARACTER * max((len(shorten(name)) for name in labels), default=1))
    thick = 13
    group = thick * len(series) + 9
    top = _legend_height(series, width) + 6
    height = round(top + group * len(labels) + (42 if x_label else 26))
    room = 50 if any(any(row) for row in texts) else 14
    scale = Scale(low, high, left, width - room)
    bottom = height - (36 if x_label else 20)
    parts = _upright(scale, top, bottom)
    for row, name in enumerate(labels):
        middle = top + group * row + (group - 9) / 2 + 4
        parts.append(_text(left - 7, middle + 4, shorten(name), "end", "name", full=name))
        for i, one in enumerate(series):
            length = one.y[row]
            if not _finite(length):
                continue
            ends = sorted((scale(0.0), scale(float(length))))
            y = top + group * row + thick * i + 4
            parts.append(
                f'<rect class="bar b{one.style % STYLES}" x="{_number(ends[0])}" y="{_number(y)}" '
                f'width="{_number(ends[1] - ends[0])}" height="{thick - 2}"/>'
            )
            reach = ends[1]
            interval = errors[i][row] if errors else None
            if interval is not None:
                a, b = (scale(end) for end in interval)
                at = _number(y + thick / 2 - 1)
                d = f"M{_number(a)} {at}H{_number(b)}"
                parts.append(f'<path class="under" d="{d}"/><path class="error" d="{d}"/>')
                reach = max(reach, b)
            if texts:
                parts.append(_text(reach + 4, y + thick - 3, texts[i][row], "start", "tick"))
    zero = _number(scale(0.0))
    parts.append(f'<line class="axis" x1="{zero}" x2="{zero}" y1="{_number(top)}" y2="{bottom}"/>')
    if x_label:
        parts.append(_text((left + width - room) / 2, height - 6, x_label, "middle", "label"))
    parts.append(_legend(series, width, lines=False, bars=True))
    return _svg(parts, title, width, height)


def dot_chart(
    labels: Sequence[str],
    series: Sequence[Series],
    *,
    title: str,
    x_range: Point | None = None,
    x_label: str = "",
    limit: float | None = None,
    width: int = 440,
) -> str:
    """Draw a row a label, and in it a dot a series with its interval; zero need not be in sight.

    Args:
        labels: the names of the rows.
        series: what each row has a dot of; ``y`` are the values, the first of ``intervals`` counts,
            and ``labels`` stand at the right.
        title: for screen readers.
        x_range: of the values; None for those of the data.
        x_label: under the axis.
        limit: a value to mark with a dashed line; None for none.
        width: in pixels.
    """
    values = [float(value) for one in series for value in one.y if _finite(value)]
    ends = [end for one in series for across, _ in one.intervals if across for end in across]
    ends += [] if limit is None else [limit]
    low, high = x_range or _span([*values, *ends], margin=0.05)
    left = min(200.0, 14 + _CHARACTER * max((len(shorten(name)) for name in labels), default=1))
    step = 12.0
    group = step * len(series) + 9
    top = _legend_height(series, width) + 8
    height = round(top + group * len(labels) + (42 if x_label else 26))
    bottom = height - (36 if x_label else 20)
    texts = max((len(text) for one in series for text in one.labels), default=0)
    scale = Scale(low, high, left, width - 14 - _CHARACTER * texts)
    parts = _upright(scale, top, bottom)
    for row, name in enumerate(labels):
        start = top + group * row + 4
        middle = start + step * len(series) / 2
        if row:
            edge = _number(start - 4.5)
            ends_of = f'x1="{_number(left)}" x2="{_number(scale.end)}" y1="{edge}" y2="{edge}"'
            parts.append(f'<line class="grid" {ends_of}/>')
        parts.append(_text(left - 7, middle + 4, shorten(name), "end", "name", full=name))
        for i, one in enumerate(series):
            value = one.y[row]
            if not _finite(value):
                continue
            y = start + step * (i + 0.5)
            across = one.intervals[row][0] if one.intervals else None
            if across is not None:
                a, b = (_number(scale.inside(end)) for end in across)
                parts.append(
                    f'<path class="whisker c{one.style % STYLES}" d="M{a} {_number(y)}H{b}"/>'
                )
            parts.append(marker(one.style % STYLES, scale(float(value)), y, 3.4))
            if one.labels:
                parts.append(_text(width - 4, y + 4, one.labels[row], "end", "tick"))
    if limit is not None:
        x = _number(scale.inside(limit))
        parts.append(f'<path class="frontier" d="M{x} {_number(top)}V{_number(bottom)}"/>')
    if x_label:
        parts.append(_text((scale.start + scale.end) / 2, height - 6, x_label, "middle", "label"))
    parts.append(_legend(series, width, lines=False))
    return _svg(parts, title, width, height)


def heat_map(
    values: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    texts: Sequence[Sequence[str]] | None = None,
    value_range: Point = (0.0, 1.0),
    row_label: str = "",
    column_label: str = "",
    cell: Point | None = None,
    style: int = 0,
) -> str:
    """Draw a matrix, darker where a value is greater, with the values written into the cells.

    Args:
        values: row by row; None leaves a cell empty.
        rows: names of the rows.
        columns: names of the columns.
        title: for screen readers.
        texts: what stands in the cells; nothing is written into cells too small for it.
        value_range: the values of the palest and of the darkest cell.
        row_label: what the rows are.
        column_label: what the columns are.
        cell: width and height of a cell in pixels; None for squares that fit.
        style: the number of the colour.
    """
    size = min(34.0, max(3.0, 360 / max(1, len(rows), len(columns))))
    wide, tall = cell or (size, size)
    longest = max((len(shorten(name)) for name in rows), default=1)
    left = 12 + _CHARACTER * longest + (18 if row_label else 0)
    head = max((len(shorten(name)) for name in columns), default=1) * _CHARACTER
    turned = head > wide - 4
    top = (8 + head * 0.72 if turned else 18) + (18 if column_label else 0)
    tail = head * 0.72 if turned else 0.0
    width = round(left + wide * len(columns) + 10 + tail)
    height = round(top + tall * len(rows) + 10)
    parts = []
    for i, name in enumerate(rows):
        if i % math.ceil(12 / tall) == 0:
            y = top + tall * (i + 0.5) + 4
            parts.append(_text(left - 6, y, shorten(name), "end", "name", full=name))
    for j, name in enumerate(columns):
        if j % math.ceil(13 / wide) == 0:
            x = left + wide * (j + 0.5)
            spin = f' transform="rotate(-45 {_number(x)} {_number(top - 6)})"' if turned else ""
            anchor = "start" if turned else "middle"
            parts.append(_text(x, top - 6, shorten(name), anchor, "name", spin, full=name))
    low, high = value_range
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if value is None or not _finite(value):
                continue
            share = min(1.0, max(0.0, (value - low) / (high - low)))
            x, y = left + wide * j, top + tall * i
            if share > 0:
                parts.append(
                    f'<rect class="cell h{style % STYLES}" x="{_number(x)}" y="{_number(y)}" '
                    f'width="{_number(wide)}" height="{_number(tall)}" '
                    f'fill-opacity="{SHADE * share:.3f}"/>'
                )
            text = texts[i][j] if texts else ""
            if text and len(text) * _CHARACTER <= wide and tall >= 13:
                parts.append(_text(x + wide / 2, y + tall / 2 + 4, text, "middle", "value"))
    box = [left, top, wide * len(columns), tall * len(rows)]
    frame = " ".join(
        f'{name}="{_number(side)}"'
        for name, side in zip(("x", "y", "width", "height"), box, strict=True)
    )
    parts.append(f'<rect class="frame" {frame}/>')
    if column_label:
        parts.append(_text(left + wide * len(columns) / 2, 13, column_label, "middle", "label"))
    if row_label:
        middle = _number(top + tall * len(rows) / 2)
        spin = f' transform="rotate(-90 13 {middle})"'
        parts.append(_text(13, float(middle), row_label, "middle", "label", spin))
    return _svg(parts, title, width, height)


def minus(text: str) -> str:
    r"""Write numbers with a minus sign in place of the hyphen.

    Example:
        >>> minus("-1").encode()
        b'\xe2\x88\x921'
    """
    return text.replace("-", "\N{MINUS SIGN}")


def marker(style: int, x: float, y: float, radius: float = 3.0) -> str:
    """Draw the marker of a series: a circle, cross, triangle, square, diamond or ring.

    Args:
        style: the number of the series' look, 0 to 5.
        x: of its centre, in pixels.
        y: of its centre, in pixels.
        radius: about half its size, in pixels.
    """
    r = radius
    name = f'class="mark m{style}"'
    if style == 0:
        return f'<circle {name} cx="{_number(x)}" cy="{_number(y)}" r="{_number(r)}"/>'
    if style == 5:
        ring = f'class="line ring c{style}"'
        return f'<circle {ring} cx="{_number(x)}" cy="{_number(y)}" r="{_number(r)}"/>'
    if style == 3:
        side = _number(1.8 * r)
        corner = f'x="{_number(x - 0.9 * r)}" y="{_number(y - 0.9 * r)}"'
        return f'<rect {name} {corner} width="{side}" height="{side}"/>'
    if style == 1:
        d = f"M{_number(x - r)} {_number(y - r)}l{_number(2 * r)} {_number(2 * r)}"
        d += f"m0 {_number(-2 * r)}l{_number(-2 * r)} {_number(2 * r)}"
        return f'<path class="line c{style}" d="{d}"/>'
    corners = (
        [(0, -1.2), (1.1, 0.8), (-1.1, 0.8)]
        if style == 2
        else [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)]
    )
    path = " ".join(f"{_number(x + r * a)},{_number(y + r * b)}" for a, b in corners)
    return f'<polygon {name} points="{path}"/>'


@dataclass(frozen=True)
class _Plot:
    """Where the values of a chart with two axes lie."""

    x: Scale
    y: Scale
    top: float
    numbers: bool

    @classmethod
    def of(
        cls,
        series: Sequence[Series],
        x_range: Point | None,
        y_range: Point | None,
        width: int,
        height: int,
        named: bool,
        numbers: bool = True,
    ) -> _Plot:
        points = [point for one in series for point in one.points() if point is not None]
        low_x, high_x = x_range or _span([x for x, _ in points], margin=0.0 if numbers else 0.04)
        low_y, high_y = y_range or _span([y for _, y in points], margin=0.05)
        top = _legend_height(series, width) + (18 if named else 6)
        left, bottom = (54, height - 38) if numbers else (8, height - 8)
        return cls(
            Scale(low_x, high_x, left, width - 14), Scale(low_y, high_y, bottom, top), top, numbers
        )

    def place(self, point: Point) -> Point:
        return self.x(point[0]), self.y(point[1])

    def whiskers(self, point: Point, across: Point | None, along: Point | None, style: int) -> str:
        """Lines through a point, over its intervals, as far as the chart goes."""
        x, y = map(_number, self.place(point))
        path = ""
        if across is not None:
            path += f"M{_number(self.x.inside(across[0]))} {y}H{_number(self.x.inside(across[1]))}"
        if along is not None:
            path += f"M{x} {_number(self.y.inside(along[0]))}V{_number(self.y.inside(along[1]))}"
        return f'<path class="whisker c{style}" d="{path}"/>' if path else ""

    def axes(self, x_label: str, y_label: str, whole: bool = False) -> str:
        left, right, bottom = map(_number, (self.x.start, self.x.end, self.y.start))
        if not self.numbers:
            width = _number(self.x.end - self.x.start)
            height = _number(self.y.start - self.top)
            corner = f'x="{left}" y="{_number(self.top)}"'
            return f'<rect class="frame" {corner} width="{width}" height="{height}"/>'
        parts = []
        for value in ticks(self.y.low, self.y.high):
            y = _number(self.y(value))
            parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>')
            parts.append(_text(self.x.start - 6, self.y(value) + 4, _tick(value), "end", "tick"))
        for value in ticks(self.x.low, self.x.high, 8, whole):
            parts.append(_text(self.x(value), self.y.start + 15, _tick(value), "middle", "tick"))
        parts.append(f'<line class="axis" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
        if x_label:
            middle = (self.x.start + self.x.end) / 2
            parts.append(_text(middle, self.y.start + 32, x_label, "middle", "label"))
        if y_label:
            parts.append(_text(4, self.top - 9, y_label, "start", "label"))
        return "".join(parts)


def _upright(scale: Scale, top: float, bottom: float) -> list[str]:
    """The lines and numbers of an axis whose values go to the right."""
    parts = []
    for value in ticks(scale.low, scale.high):
        x = _number(scale(value))
        ends = f'y1="{_number(top)}" y2="{_number(bottom)}"'
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" {ends}/>')
        parts.append(_text(scale(value), bottom + 14, _tick(value), "middle", "tick"))
    return parts


def _span(values: Sequence[float], margin: float) -> Point:
    """The range of values, a little wider; never empty."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if high - low < 1e-5 * max(abs(low), abs(high)) or high == low:  # rounding, no curve
        reach = 0.5 * (abs(low) or 1.0)
        return low - reach, high + reach
    return low - margin * (high - low), high + margin * (high - low)


def _unbroken(points: Iterable[Point | None]) -> list[list[Point]]:
    """Cut a line at its gaps."""
    runs: list[list[Point]] = [[]]
    for point in points:
        if point is None:
            runs.append([])
        else:
            runs[-1].append(point)
    return [run for run in runs if run]


def _legend_items(series: Sequence[Series], width: int) -> list[tuple[Series, float, float]]:
    """Every named series with the place of its entry, line after line."""
    items, x, y = [], 8.0, 12.0
    for one in series:
        if not one.name:
            continue
        needed = 34 + _CHARACTER * len(shorten(one.name, 40))
        if x > 8 and x + needed > width:
            x, y = 8.0, y + 17
        items.append((one, x, y))
        x += needed
    return items


def _legend_height(series: Sequence[Series], width: int) -> float:
    items = _legend_items(series, width)
    return items[-1][2] + 8 if items else 0.0


def _legend(series: Sequence[Series], width: int, *, lines: bool, bars: bool = False) -> str:
    parts = []
    for one, x, y in _legend_items(series, width):
        style = one.style % STYLES
        if bars:
            box = f'x="{_number(x)}" y="{_number(y - 7)}" width="16" height="9"'
            parts.append(f'<rect class="bar b{style}" {box}/>')
        else:
            if lines:
                ends = f'x1="{_number(x)}" x2="{_number(x + 18)}" y1="{y - 3}" y2="{y - 3}"'
                dashes = f' stroke-dasharray="{_DASHES[style]}"' if _DASHES[style] else ""
                parts.append(f'<line class="line c{style}" {ends}{dashes}/>')
            parts.append(marker(style, x + 9, y - 3, 3.2))
        name = shorten(one.name, 40)
        parts.append(_text(x + 23, y + 1, name, "start", "name", full=one.name))
    return "".join(parts)


def _label_at(x: float, y: float, text: str, radius: float, plot: _Plot, taken: list[_Box]) -> str:
    """Write beside a point, where there is room: away from other points and their labels."""
    wide, tall, gap = _CHARACTER * len(text), 11.0, radius + 3
    beside = [(x + gap, y - tall / 2), (x - gap - wide, y - tall / 2)]
    over = [(x - wide / 2, y - gap - tall), (x - wide / 2, y + gap)]
    far = [
        (x + side - (wide if side < 0 else 0), y + drop - tall / 2)
        for drop in (-12, 12, -22, 22, -33, 33, -44, 44)
        for side in (gap, -gap)
    ]
    places = [(a, b, a + wide, b + tall) for a, b in (*beside, *over, *far)]

    def trouble(box: _Box) -> float:
        outside = max(0.0, plot.x.start - box[0]) + max(0.0, box[2] - plot.x.end - 10)
        outside += max(0.0, plot.top - box[1]) + max(0.0, box[3] - plot.y.start)
        return outside * tall + sum(_shared(box, other) for other in taken)

    box = min(places, key=trouble)  # the first of those with the least
    taken.append(box)
    return _text(box[0], box[3] - 2, text, "start", "beside")


def _names(plot: _Plot, names: Sequence[tuple[Point, str]]) -> list[str]:
    """Write every name on its place, or a little above or below where another one stands."""
    parts: list[str] = []
    taken: list[_Box] = []
    for point, name in names:
        x, y = plot.place(point)
        text = shorten(name, 14)
        half = _CHARACTER * len(text) / 2
        x = min(max(x, plot.x.start + half), plot.x.end - half)
        boxes = [(x - half, y + d - 6, x + half, y + d + 5) for d in (0, -11, 11, -22, 22)]
        box = min(boxes, key=lambda box: sum(_shared(box, other) for other in taken))
        taken.append(box)
        parts.append(_text(x, box[3] - 1, text, "middle", "over", full=name))
    return parts


def _shared(a: _Box, b: _Box) -> float:
    """The area that two boxes share."""
    wide, tall = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, wide) * max(0.0, tall)


def _text(
    x: float, y: float, text: str, anchor: str, kind: str, more: str = "", full: str | None = None
) -> str:
    tip = f"<title>{escape(full)}</title>" if full is not None and full != text else ""
    place = f'x="{_number(x)}" y="{_number(y)}"'
    return f'<text class="{kind}" {place} text-anchor="{anchor}"{more}>{tip}{escape(text)}</text>'


def _svg(parts: Iterable[str], title: str, width: int, height: int) -> str:
    body = "".join(parts)
    return (
        f'<svg role="img" aria-label="{escape(title)}" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">{body}</svg>'
    )


def _number(value: float) -> str:
    """Write a pixel with at most two decimals."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _tick(value: float) -> str:
    return minus(f"{value:.6g}")


def _finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)
