"""``leaderboard.html`` of a sweep: which defense does best against which attack, at what cost."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from fst_lightning.reports.html.pages import details, escape, figure, figures, page, section, table
from fst_lightning.reports.html.svg import Point, Series, heat_map, scatter
from fst_lightning.reports.results.boards import Cells, boards_of
from fst_lightning.reports.results.files import write_text
from fst_lightning.reports.results.sweep import Spread, SweepSummary
from fst_lightning.reports.results.sweep_text import (
    failure_line,
    shared_lines,
    spread_text,
    sweep_notes,
)
from fst_lightning.reports.tables.sweep_files import table_rows

_BEFORE = "(before)"
_UNDECIDED = "Defenses against attacks"
_MOST_ATTACKS = 8
_MOST_FOLLOWERS = 6
_MOST_NAMED = 9
"""More points than these would hide each other's names: those on the frontier are named then."""

_RING = 5
"""The look of what is not told apart."""


def write_leaderboard(summary: SweepSummary, folder: str | os.PathLike[str]) -> Path:
    """Write `leaderboard.html` into a folder, and return its path."""
    path = Path(folder) / "leaderboard.html"
    write_text(path, render_leaderboard(summary))
    return path


def render_leaderboard(summary: SweepSummary) -> str:
    """Write the page over all runs: heat maps, trade-offs, the table, what failed.

    Args:
        summary: the sweep.

    Returns:
        HTML that needs nothing but itself.
    """
    boards = boards_of(summary)
    parts = [*_top(summary, boards)]
    for name, cells in boards.items():
        parts += _board(name if len(boards) > 1 else "", cells)
    head, rows = table_rows(summary)
    full = table(head, rows, kind="dense", text_columns=len(summary.varying))
    note = "Mean ± standard deviation over seeds. The same as CSV, Markdown and LaTeX: table.*"
    settings = [[line] for line in shared_lines(summary)]
    shared = details("Settings that all runs share", table([""], settings, kind="dense"))
    parts.append(section("All experiments", [full, shared if settings else ""], note))
    failed = [[failure_line(failure)] for failure in summary.failures]
    parts.append(section("What failed", [table([""], failed, kind="plain")]))
    return page("Leaderboard", filter(None, parts))


def pareto(points: Sequence[Point]) -> list[int]:
    """The points that no other one beats: none has less x and as much y, or more y for as much x.

    Args:
        points: x, of which less is better, and y, of which more is better.

    Returns:
        Their places in the sequence, by x.

    Example:
        >>> pareto([(0.0, 0.5), (1.0, 0.9), (2.0, 0.8)])
        [0, 1]
    """
    best = float("-inf")
    frontier: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        # An equal point is not beaten by its twin.
        if points[i][1] > best or (frontier and points[i] == points[frontier[-1]]):
            frontier.append(i)
            best = points[i][1]
    return frontier


def _top(summary: SweepSummary, boards: dict[str, Cells]) -> Iterator[str]:
    counts = f"{len(summary.runs)} runs, {len(summary.groups)} experiments"
    yield f'<p class="kicker">{escape(f"{counts}, {len(summary.failures)} failed")}</p>'
    headline, lead = _headline(boards)
    yield f"<h1>{escape(headline)}</h1>"
    if lead:
        yield f'<p class="lead">{escape(lead)}</p>'
    for note in sweep_notes(summary):
        yield f'<p class="warning">{escape(note)}</p>'


def _headline(boards: dict[str, Cells]) -> tuple[str, str]:
    """Name the defense with the best mean DER, where all can be compared, and the others."""
    if len(boards) != 1:
        return _UNDECIDED, ""
    (cells,) = boards.values()
    attacks, defenses = _taken(cells), _axes(cells)[1]
    der = {d: _over_attacks(cells, attacks, d, "der") for d in defenses}
    known = {d: value for d, value in der.items() if value is not None}
    if len(known) < 2 or len(known) < len(defenses):
        return _UNDECIDED, ""
    ranked = sorted(known, key=lambda d: -known[d])
    best, second = ranked[:2]
    many = f", averaged over {len(attacks)} attacks" if len(attacks) > 1 else f" on {attacks[0]}"
    followers = ", ".join(f"{d} {known[d]:.4f}" for d in ranked[1:_MOST_FOLLOWERS])
    lead = f"Then {followers}{', ...' if len(ranked) > _MOST_FOLLOWERS else ''}."
    spread = _deviation(cells, attacks, (best, second))
    if spread is not None and known[best] - known[second] < spread:
        lead += (
            f" The first two differ by {known[best] - known[second]:.4f}, less than the standard "
            f"error over seeds, {spread:.4f}: this sweep does not tell which is better."
        )
    return f"{best} rates best: DER {known[best]:.4f}{many}.", lead


def _deviation(cells: Cells, attacks: Sequence[str], pair: tuple[str, str]) -> float | None:
    r"""The standard error of the difference of two means over attacks, from the seeds' deviations.

    .. math:: \frac{1}{A} \sqrt{\sum_{a, d} s_{a,d}^2 / n_{a,d}}
    """
    variances = []
    for attack in attacks:
        for defense in pair:
            spread = cells[attack, defense].values["der"]
            if spread.std is None:
                return None
            variances.append(spread.std**2 / spread.n)
    return math.sqrt(sum(variances)) / len(attacks)


def _axes(cells: Cells) -> tuple[list[str], list[str]]:
    attacks = list(dict.fromkeys(attack for attack, _ in cells))
    return attacks, list(dict.fromkeys(defense for _, defense in cells))


def _taken(cells: Cells) -> list[str]:
    """The attacks that took at least once: of the others a defense can't be judged by."""
    return [
        attack
        for attack in _axes(cells)[0]
        if any(g.not_implanted < g.n for (name, _), g in cells.items() if name == attack)
    ]


def _over_attacks(cells: Cells, attacks: Sequence[str], defense: str, value: str) -> float | None:
    """The mean of a defense over all attacks; None where one of them is missing."""
    means = [
        cells[attack, defense].values[value].mean if (attack, defense) in cells else None
        for attack in attacks
    ]
    known = [mean for mean in means if mean is not None]
    return fmean(known) if known and len(known) == len(means) else None


def _board(name: str, cells: Cells) -> Iterator[str]:
    title = f" ({name})" if name else ""
    worst = [g.values["after.ca"].mean for g in cells.values()]
    # Accuracies lie close together: the palest cell is the next ten below the worst.
    least = math.floor(10 * min((ca for ca in worst if ca is not None), default=0.0)) / 10
    maps = [
        _heat(cells, "after.ca", "before.ca", "Clean accuracy, %", 100, 1, 0, (least, 1.0)),
        _heat(cells, "after.asr", "before.asr", "Attack success rate, %", 100, 1, 1, (0.0, 1.0)),
        _heat(cells, "der", None, "Defense effectiveness rating", 1, 3, 2, (0.5, 1.0)),
    ]
    note = (
        "Rows are attacks, columns defenses; mean ± standard deviation over seeds. The darker, the "
        f"greater: CA from {100 * least:.0f} to 100 %, ASR from 0 to 100 %, DER from 0.5, which is "
        "what doing nothing gets, to 1. DER counts runs whose attack took."
    )
    yield section(f"Defense against attack{title}", [figures(maps)], note)
    asr, ca = _Axis("after.asr", "ASR after, %", 100, False), _Axis("after.ca", "CA after, %", 100)
    ra, der = _Axis("after.ra", "RA after, %", 100), _Axis("der", "DER", 1)
    seconds = _Axis("seconds.purify", "seconds to purify", 1, False)
    note = (
        "Best is up and to the {side}. Filled: no other defense is better in one and as good in "
        "the other (Pareto frontier); rings: one is. Lines: standard deviation over seeds. Of more "
        f"than {_MOST_NAMED} points, marks tell the defenses apart, and the frontier is named."
    )
    for heading, x, side in (
        ("Clean accuracy against attack success", asr, "left"),
        ("Clean accuracy against robust accuracy", ra, "right"),
    ):
        yield section(f"{heading}{title}", [figures(_trades(cells, x, ca))], note.format(side=side))
    benefit = figures(_trades(cells, seconds, der, mean_only=True))
    yield section(f"Cost against benefit{title}", [benefit], note.format(side="left"))


def _heat(
    cells: Cells,
    value: str,
    before: str | None,
    title: str,
    factor: float,
    digits: int,
    style: int,
    value_range: Point,
) -> str:
    attacks, defenses = _axes(cells)
    columns = ([_BEFORE] if before else []) + defenses
    spreads: list[list[Spread | None]] = []
    for attack in attacks:
        row: list[Spread | None] = []
        if before:
            # The networks that came in are the same for every defense.
            known = [g.values[before] for (name, _), g in cells.items() if name == attack]
            row.append(max(known, key=lambda spread: spread.n))
        row += [cells[attack, d].values[value] if (attack, d) in cells else None for d in defenses]
        spreads.append(row)
    number: Callable[[float], str] = lambda mean: f"{factor * mean:.{digits}f}"  # noqa: E731
    texts = [
        [spread_text(spread, number, " ± ") if spread else "" for spread in row] for row in spreads
    ]
    if not any(spread is not None and spread.mean is not None for row in spreads for spread in row):
        return ""
    deviates = any(
        spread is not None and spread.std is not None for row in spreads for spread in row
    )
    chart = heat_map(
        [[spread.mean if spread else None for spread in row] for row in spreads],
        attacks,
        columns,
        title=title,
        texts=texts,
        value_range=value_range,
        cell=(98.0 if deviates else 62.0, 30.0),  # the same in all three maps
        style=style,
    )
    # On a telephone it is scrolled: shrunk to the window its numbers could not be read.
    return figure(f'<div class="wide">{chart}</div>', title)


@dataclass(frozen=True)
class _Axis:
    """A value of an experiment, its label, the factor to show it with, whether more is better."""

    value: str
    label: str
    factor: float
    more: bool = True


def _trades(cells: Cells, x: _Axis, y: _Axis, mean_only: bool = False) -> Iterator[str]:
    """A scatter plot of the means over the attacks that took, and one for every attack.

    Args:
        cells: the experiments.
        x: across.
        y: up, of which more is better.
        mean_only: leave out the single attacks, where there is a mean over them.
    """
    taken = _taken(cells)
    charts: list[tuple[str, Sequence[str]]] = []
    if len(taken) > 1:
        charts.append((f"mean over {len(taken)} attacks", taken))
    if not (charts and mean_only):
        charts += [(attack, [attack]) for attack in _axes(cells)[0][:_MOST_ATTACKS]]
    places = [_places(cells, chosen, x, y) for _, chosen in charts]
    every = [point for points in places for point, _ in points.values()]
    # One range for all of them, so that they can be compared.
    ranges = [_wide([point[axis] for point in every]) for axis in (0, 1)] if every else []
    for (title, _), points in zip(charts, places, strict=True):
        if points:
            yield figure(_trade(points, title, x, y, ranges), title)


Placed = dict[str, tuple[Point, tuple[Point | None, Point | None]]]
"""By defense, where it lies, and between which values in x and y."""


def _places(cells: Cells, attacks: Sequence[str], x: _Axis, y: _Axis) -> Placed:
    """The means over attacks; the intervals where there is a single one."""
    places: Placed = {}
    for defense in _axes(cells)[1]:
        means = [_over_attacks(cells, attacks, defense, axis.value) for axis in (x, y)]
        if means[0] is None or means[1] is None:
            continue
        intervals: list[Point | None] = [None, None]
        if len(attacks) == 1:
            group = cells[attacks[0], defense]
            intervals = [_interval(group.values[axis.value], axis.factor) for axis in (x, y)]
        point = (x.factor * means[0], y.factor * means[1])
        places[defense] = (point, (intervals[0], intervals[1]))
    return places


def _interval(spread: Spread, factor: float) -> Point | None:
    if spread.mean is None or spread.std is None:
        return None
    return factor * (spread.mean - spread.std), factor * (spread.mean + spread.std)


def _trade(places: Placed, title: str, x: _Axis, y: _Axis, ranges: Sequence[Point]) -> str:
    names = list(places)
    points = [point for point, _ in places.values()]
    front = pareto([(-across if x.more else across, up) for across, up in points])
    many = len(names) > _MOST_NAMED
    clouds = _by_defense(names) if many else _by_rank(len(names), front)
    series = [
        Series(
            kind,
            [points[i][1] for i in those],
            [points[i][0] for i in those],
            style,
            ["" if many and i not in front else names[i] for i in those],
            [places[names[i]][1] for i in those],
        )
        for kind, style, those in clouds
    ]
    return scatter(
        series,
        title=f"{y.label} against {x.label}, {title}",
        x_label=x.label,
        y_label=y.label,
        x_range=ranges[0],
        y_range=ranges[1],
        frontier=[points[i] for i in front],
        radius=4.5,
    )


Clouds = list[tuple[str, int, list[int]]]
"""Points that look alike: their name, their look, their places."""


def _by_rank(count: int, front: Sequence[int]) -> Clouds:
    """What no other defense beats is filled, the rest are rings."""
    beaten = [i for i in range(count) if i not in front]
    clouds = [("on the frontier", 0, sorted(front)), ("beaten", _RING, beaten)]
    return [cloud for cloud in clouds if cloud[2]]


def _by_defense(names: Sequence[str]) -> Clouds:
    """The settings of a defense look alike: those with most of them, and rings for the others."""
    kinds: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        kinds.setdefault(name.split(" ")[0], []).append(i)
    ranked = sorted(kinds, key=lambda kind: -len(kinds[kind]))
    clouds = [(kind, style, kinds[kind]) for style, kind in enumerate(ranked[:_RING])]
    others = [i for kind in ranked[_RING:] for i in kinds[kind]]
    return [*clouds, ("others", _RING, others)] if others else clouds


def _wide(values: Sequence[float]) -> Point:
    """A range with room around the points, so that none lies on the edge."""
    low, high = min(values), max(values)
    room = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
    return low - room, high + room
