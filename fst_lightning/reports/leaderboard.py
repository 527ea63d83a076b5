"""``leaderboard.html`` of a sweep: which defense does best against which attack, at what cost."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean

from fst_lightning.reports.files import write_text
from fst_lightning.reports.layout import NOT_GIVEN
from fst_lightning.reports.pages import escape, figure, figures, page, section, table
from fst_lightning.reports.svg import Point, Series, heat_map, scatter
from fst_lightning.reports.sweep import Group, Spread, SweepSummary
from fst_lightning.reports.sweep_files import table_rows
from fst_lightning.reports.sweep_table import failure_line, shared_lines, spread_text, sweep_notes

_BEFORE = "(before)"
_MOST_ATTACKS = 8


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
    boards = _boards(summary)
    parts = [*_top(summary, boards)]
    for name, cells in boards.items():
        parts += _board(name if len(boards) > 1 else "", cells)
    head, rows = table_rows(summary)
    full = table(head, rows, text_columns=len(summary.varying))
    note = "Mean ± standard deviation over seeds. The same as CSV, Markdown and LaTeX: table.*"
    parts.append(section("All experiments", [full], note))
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


Cells = dict[tuple[str, str], Group]
"""The experiments of one board, by (attack, defense)."""


def _boards(summary: SweepSummary) -> dict[str, Cells]:
    """One board for every combination of what is neither attack nor defense."""
    boards: dict[str, Cells] = {}
    for group in summary.groups:
        if group.settings.get("task") != "purify":
            continue
        attack = _named(summary, group, "attack")
        defense = _named(summary, group, "defense")
        rest = [
            f"{name}={group.settings.get(name, NOT_GIVEN)}"
            for name in summary.varying
            if name.partition(".")[0] not in ("attack", "defense", "task")
        ]
        boards.setdefault(" ".join(rest), {})[attack, defense] = group
    return boards


def _named(summary: SweepSummary, group: Group, owner: str) -> str:
    """Name an attack or a defense, with the arguments that vary: `fst alpha=0.1`."""
    words = [str(group.settings.get(owner, NOT_GIVEN))]
    words += [
        f"{name.partition('.')[2]}={group.settings[name]}"
        for name in summary.varying
        if name.startswith(f"{owner}.") and name in group.settings
    ]
    return " ".join(words)


def _top(summary: SweepSummary, boards: dict[str, Cells]) -> Iterator[str]:
    counts = f"{len(summary.runs)} runs, {len(summary.groups)} experiments"
    yield f'<p class="kicker">{escape(f"{counts}, {len(summary.failures)} failed")}</p>'
    yield f"<h1>{escape(_headline(boards))}</h1>"
    for line in shared_lines(summary):
        yield f'<p class="note">{escape(line)}</p>'
    for note in sweep_notes(summary):
        yield f'<p class="warning">{escape(note)}</p>'


def _headline(boards: dict[str, Cells]) -> str:
    """Name the defense with the best mean DER, where all can be compared."""
    if len(boards) != 1:
        return "Defenses against attacks"
    (cells,) = boards.values()
    attacks, defenses = _axes(cells)
    der = {d: _over_attacks(cells, attacks, d, "der") for d in defenses}
    known = {d: value for d, value in der.items() if value is not None}
    if len(known) < 2 or len(known) < len(defenses):
        return "Defenses against attacks"
    best = max(known, key=lambda d: known[d])
    many = f", averaged over {len(attacks)} attacks" if len(attacks) > 1 else f" on {attacks[0]}"
    return f"{best} rates best: DER {known[best]:.4f}{many}."


def _axes(cells: Cells) -> tuple[list[str], list[str]]:
    attacks = list(dict.fromkeys(attack for attack, _ in cells))
    return attacks, list(dict.fromkeys(defense for _, defense in cells))


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
    maps = [
        _heat(cells, "after.ca", "before.ca", "Clean accuracy, %", 100, 1, 0),
        _heat(cells, "after.asr", "before.asr", "Attack success rate, %", 100, 1, 1),
        _heat(cells, "der", None, "Defense effectiveness rating", 1, 3, 2),
    ]
    note = (
        "Rows are attacks, columns defenses; mean ± standard deviation over seeds. DER counts "
        "runs whose attack took; 0.5 is what doing nothing gets."
    )
    yield section(f"Defense against attack{title}", [figures(maps)], note)
    asr, ca = ("after.asr", "ASR after, %", 100.0), ("after.ca", "CA after, %", 100.0)
    seconds, der = ("seconds.purify", "seconds to purify", 1.0), ("der", "DER", 1.0)
    note = (
        "Best is up and to the left. Filled: no other defense is better in one and as good in the "
        "other (Pareto frontier); rings: one is."
    )
    yield section(
        f"Clean accuracy against attack success{title}", [figures(_trades(cells, asr, ca))], note
    )
    benefit = figures(_trades(cells, seconds, der, mean_only=True))
    yield section(f"Cost against benefit{title}", [benefit], note)


def _heat(
    cells: Cells, value: str, before: str | None, title: str, factor: float, digits: int, style: int
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
    widest = max(len(text) for row in texts for text in row)
    chart = heat_map(
        [[spread.mean if spread else None for spread in row] for row in spreads],
        attacks,
        columns,
        title=title,
        texts=texts,
        cell=(max(62.0, 7.0 * widest + 10), 30.0),
        style=style,
    )
    return figure(chart, title)


def _trades(
    cells: Cells,
    x: tuple[str, str, float],
    y: tuple[str, str, float],
    mean_only: bool = False,
) -> Iterator[str]:
    """A scatter plot of the means over the attacks, and one for every attack.

    Args:
        cells: the experiments.
        x: the value of which less is better, its label and the factor to show it with.
        y: the value of which more is better, likewise.
        mean_only: leave out the single attacks, where there is a mean over them.
    """
    (x_value, x_label, x_factor), (y_value, y_label, y_factor) = x, y
    attacks, defenses = _axes(cells)

    def chart(title: str, chosen: Sequence[str]) -> str:
        places: dict[str, Point] = {}
        for defense in defenses:
            at, height = (
                _over_attacks(cells, chosen, defense, value) for value in (x_value, y_value)
            )
            if at is not None and height is not None:
                places[defense] = (x_factor * at, y_factor * height)
        if not places:
            return ""
        names, points = list(places), list(places.values())
        front = pareto(points)
        series = []
        for kind, style in (("on the frontier", 0), ("beaten", 5)):
            those = [i for i in range(len(points)) if (i in front) == (style == 0)]
            if those:
                ys, xs = [points[i][1] for i in those], [points[i][0] for i in those]
                series.append(Series(kind, ys, xs, style, [names[i] for i in those]))
        frontier = [points[i] for i in front]
        return figure(
            scatter(
                series,
                title=f"{y_label} against {x_label}, {title}",
                x_label=x_label,
                y_label=y_label,
                x_range=_wide([p[0] for p in points]),
                y_range=_wide([p[1] for p in points]),
                frontier=frontier,
                radius=4.5,
            ),
            title,
        )

    mean = chart("mean over the attacks", attacks) if len(attacks) > 1 else ""
    yield mean
    for attack in () if mean and mean_only else attacks[:_MOST_ATTACKS]:
        yield chart(attack, [attack])


def _wide(values: Sequence[float]) -> Point:
    """A range with room around the points, so that none lies on the edge."""
    low, high = min(values), max(values)
    room = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
    return low - room, high + room
