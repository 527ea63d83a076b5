"""``leaderboard.html`` of a sweep: which defense does best against which attack, at what cost."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from fst_lightning.reports.charts.palette import RING
from fst_lightning.reports.charts.plots import Point, Series, heat_map, scatter
from fst_lightning.reports.html.page import Cell, Figure, Link, Page, Section, Table, address_of
from fst_lightning.reports.html.unknown_triggers import unknown_headline, unknown_section
from fst_lightning.reports.numbers import significant
from fst_lightning.reports.results.boards import Cells, boards_of
from fst_lightning.reports.results.sweep import Group, Spread, SweepSummary
from fst_lightning.reports.results.sweep_text import (
    failure_line,
    rating_digits,
    shared_lines,
    spread_digits,
    sweep_notes,
    table_rows,
)

_BEFORE = "(before)"
_UNDECIDED = "Defenses against attacks"
_MOST_ATTACKS = 8
_MOST_FOLLOWERS = 6
_MOST_NAMED = 24
"""How many labels stand beside a chart. Of more points, those on the frontier are named."""


def leaderboard_page(summary: SweepSummary, folder: str | os.PathLike[str] | None = None) -> Page:
    """Put the page over all runs together: heat maps, trade-offs, the table, what failed.

    Args:
        summary: The sweep.
        folder: Where the page will be, for its links to the reports of the runs. The default is
            the folder of the sweep.
    """
    boards = boards_of(summary)
    reports = _reports(summary, Path(folder or summary.folder))
    headline, lead = _headline(boards)
    counts = f"{len(summary.runs)} runs, {len(summary.groups)} experiments"
    sections: list[Section] = []
    for name, cells in boards.items():
        sections += _board(f" ({name})" if name and len(boards) > 1 else "", cells, reports)
    return Page(
        title="Leaderboard",
        kicker=f"{counts}, {len(summary.failures)} failed",
        headline=headline,
        lead=lead,
        warnings=sweep_notes(summary),
        sections=[*sections, _experiments(summary, reports), _failed(summary)],
    )


def render_leaderboard(summary: SweepSummary) -> str:
    """Return the HTML of :func:`leaderboard_page`, which needs nothing but itself."""
    return leaderboard_page(summary).html()


def write_leaderboard(summary: SweepSummary, folder: str | os.PathLike[str]) -> Path:
    """Write ``leaderboard.html`` into a folder, and its charts as files beside it.

    Args:
        summary: The sweep.
        folder: Where to write. Older files are replaced.

    Returns:
        The path of the page.
    """
    path = Path(folder) / "leaderboard.html"
    leaderboard_page(summary, folder).write(path)
    return path


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


def _reports(summary: SweepSummary, folder: Path) -> dict[str, str]:
    """The addresses of the reports that exist, by job."""
    found = {}
    for run in summary.runs:
        file = summary.folder / run.job / "report.html"
        if file.is_file():
            found[run.job] = address_of(Path(os.path.relpath(file, folder)).as_posix())
    return found


def _experiments(summary: SweepSummary, reports: dict[str, str]) -> Section:
    head, rows = table_rows(summary, spread_digits, rating_digits)
    cells: list[list[Cell]] = []
    for row, group in zip(rows, summary.groups, strict=True):
        runs = zip(group.seeds, group.jobs, strict=True)
        links = [Link(str(seed), reports[job]) for seed, job in runs if job in reports]
        cells.append([*row, links or " ".join(map(str, group.seeds))])
    if not cells:
        return Section("All experiments")
    table = Table(cells, [*head, "reports by seed"], "dense", text_columns=len(summary.varying))
    figures = [Figure("", table=table)]
    if shared := [[line] for line in shared_lines(summary)]:
        figures.append(Figure("Settings that all runs share", table=Table(shared, kind="lines")))
    note = "Mean ± standard deviation over seeds. The same as CSV, Markdown and LaTeX: table.*"
    return Section("All experiments", figures, note, explained="all-experiments")


def _failed(summary: SweepSummary) -> Section:
    failed = [[failure_line(failure)] for failure in summary.failures]
    figures = [Figure("", table=Table(failed))] if failed else ()
    return Section("What failed", figures, explained="what-failed")


def _headline(boards: dict[str, Cells]) -> tuple[str, str]:
    """Name the defense with the best mean DER if all can be compared, and the others."""
    if len(boards) != 1:
        return _UNDECIDED, ""
    (cells,) = boards.values()
    if _unknown(cells):
        return unknown_headline(cells)
    attacks, defenses = _taken(cells), _axes(cells)[1]
    der = {d: _over_attacks(cells, attacks, d, "der") for d in defenses}
    known = {d: value for d, value in der.items() if value is not None}
    if len(known) < 2 or len(known) < len(defenses):
        return _UNDECIDED, ""
    ranked = sorted(known, key=lambda d: -known[d])
    best, second = ranked[:2]
    many = f", averaged over {len(attacks)} attacks" if len(attacks) > 1 else f" on {attacks[0]}"
    followers = ", ".join(f"{d} {significant(known[d], 3)}" for d in ranked[1:_MOST_FOLLOWERS])
    more = len(ranked) - _MOST_FOLLOWERS
    lead = f"Then {followers}{f' and {more} more' if more > 0 else ''}."
    spread, gap = _deviation(cells, attacks, (best, second)), known[best] - known[second]
    if spread is not None and gap < spread:
        lead += (
            f" The first two differ by {gap:.4f}, less than the standard "
            f"error over seeds, {spread:.4f}: this sweep does not tell which is better."
        )
    return f"{best} rates best: DER {significant(known[best], 3)}{many}.", lead


def _unknown(cells: Cells) -> bool:
    """Whether no trigger is known, so that no success of an attack could be measured."""
    return all(group.values["before.asr"].mean is None for group in cells.values())


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


def _board(title: str, cells: Cells, reports: dict[str, str]) -> Iterator[Section]:
    if _unknown(cells):
        yield unknown_section(f"Defenses without a known trigger{title}", cells, reports)
    worst = [g.values["after.ca"].mean for g in cells.values()]
    # Accuracies lie close together: the palest cell is the next ten below the worst.
    least = math.floor(10 * min((ca for ca in worst if ca is not None), default=0.0)) / 10
    ca, asr = _Axis("after.ca", "CA after, %", 100), _Axis("after.asr", "ASR after, %", 100, False)
    ra, der = _Axis("after.ra", "RA after, %", 100), _Axis("der", "DER", 1)
    maps = [
        _heat(cells, ca, "before.ca", "Clean accuracy, %", 0, (least, 1.0), reports),
        _heat(cells, asr, "before.asr", "Attack success rate, %", 1, (0.0, 1.0), reports),
        _heat(cells, ra, "before.ra", "Robust accuracy, %", 2, (0.0, 1.0), reports),
        _heat(cells, der, None, "Defense effectiveness rating", 0, (0.5, 1.0), reports),
    ]
    note = (
        "Rows are defenses, columns attacks; mean ± standard deviation over seeds. The darker, the "
        f"greater: CA from {100 * least:.0f} to 100 %, ASR and RA from 0 to 100 %, DER from 0.5, "
        "which is what doing nothing gets, to 1. DER counts runs whose attack took. A cell leads "
        "to the report of its first run."
    )
    shown = [figure for figure in maps if figure]
    yield Section(f"Defense against attack{title}", shown, note, explained="defense-against-attack")
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
        charts = list(_trades(cells, x, ca))
        yield Section(f"{heading}{title}", charts, note.format(side=side), explained="trade-offs")
    charts = list(_trades(cells, seconds, der, mean_only=True))
    heading = f"Cost against benefit{title}"
    yield Section(heading, charts, note.format(side="left"), explained="trade-offs")


@dataclass(frozen=True)
class _Axis:
    """A value of an experiment, its label, the factor to show it with, whether more is better."""

    value: str
    label: str
    factor: float
    more: bool = True


def _heat(
    cells: Cells,
    axis: _Axis,
    before: str | None,
    title: str,
    style: int,
    value_range: Point,
    reports: dict[str, str],
) -> Figure | None:
    attacks, defenses = _axes(cells)
    rows: dict[str, list[Spread | None]] = {}
    links: list[list[str | None]] = []
    if before:
        # The networks before are the same for every defense. The spread with most runs counts.
        known = [[g.values[before] for (a, _), g in cells.items() if a == name] for name in attacks]
        rows[_BEFORE] = [max(spreads, key=lambda spread: spread.n) for spreads in known]
        links.append([None] * len(attacks))
    for defense in defenses:
        groups = [cells.get((attack, defense)) for attack in attacks]
        rows[defense] = [None if group is None else group.values[axis.value] for group in groups]
        links.append([_first_report(group, reports) for group in groups])
    means = [[spread.mean if spread else None for spread in row] for row in rows.values()]
    if all(mean is None for row in means for mean in row):
        return None
    write = spread_digits if axis.factor == 100 else rating_digits
    texts = [[write(spread) if spread else "" for spread in row] for row in rows.values()]
    deviates = any(spread and spread.std is not None for row in rows.values() for spread in row)
    chart = heat_map(
        means,
        list(rows),
        attacks,
        title=title,
        texts=texts,
        links=links,
        value_range=value_range,
        cell=(98.0 if deviates else 72.0, 28.0),  # the same in all maps
        style=style,
        name_length=60,
    )
    # A phone scrolls it. Shrunk to the window, its numbers could not be read.
    return Figure(title, chart, scrolls=True)


def _first_report(group: Group | None, reports: dict[str, str]) -> str | None:
    jobs = () if group is None else group.jobs
    return next((reports[job] for job in jobs if job in reports), None)


def _trades(cells: Cells, x: _Axis, y: _Axis, mean_only: bool = False) -> Iterator[Figure]:
    """A scatter plot of the means over the attacks that took, and one for every attack.

    Args:
        cells: the experiments.
        x: across.
        y: up, of which more is better.
        mean_only: leave out the single attacks if there is a mean over them.
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
            yield _trade(points, title, x, y, ranges)


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


def _trade(places: Placed, title: str, x: _Axis, y: _Axis, ranges: Sequence[Point]) -> Figure:
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
            ["" if many and i not in front[:_MOST_NAMED] else names[i] for i in those],
            [places[names[i]][1] for i in those],
        )
        for kind, style, those in clouds
    ]
    labels = len(front[:_MOST_NAMED]) if many else len(names)
    chart = scatter(
        series,
        title=f"{y.label} against {x.label}, {title}",
        x_label=x.label,
        y_label=y.label,
        x_range=ranges[0],
        y_range=ranges[1],
        frontier=[points[i] for i in front],
        radius=4.5,
        height=max(320, 90 + 15 * labels),
    )
    return Figure(title, chart, scrolls=True)


Clouds = list[tuple[str, int, list[int]]]
"""Points that look alike: their name, their look, their places."""


def _by_rank(count: int, front: Sequence[int]) -> Clouds:
    """What no other defense beats is filled, the rest are rings."""
    beaten = [i for i in range(count) if i not in front]
    clouds = [("on the frontier", 0, sorted(front)), ("beaten", RING, beaten)]
    return [cloud for cloud in clouds if cloud[2]]


def _by_defense(names: Sequence[str]) -> Clouds:
    """The settings of a defense look alike: those with most of them, and rings for the others."""
    kinds: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        kinds.setdefault(name.split(" ")[0], []).append(i)
    ranked = sorted(kinds, key=lambda kind: -len(kinds[kind]))
    clouds = [(kind, style, kinds[kind]) for style, kind in enumerate(ranked[:RING])]
    others = [i for kind in ranked[RING:] for i in kinds[kind]]
    return [*clouds, ("others", RING, others)] if others else clouds


def _wide(values: Sequence[float]) -> Point:
    """A range with room around the points, so that none lies on the edge."""
    low, high = min(values), max(values)
    room = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
    return low - room, high + room
