"""The leaderboard of networks whose trigger is unknown: it ranks by what can be measured."""

from __future__ import annotations

import math

from fst_lightning.reports.html.page import Cell, Figure, Link, Section, Table
from fst_lightning.reports.numbers import NOT_GIVEN, points_text, rate_text, significant
from fst_lightning.reports.results.boards import Cells
from fst_lightning.reports.results.sweep import Group, Spread

_COLUMNS = (
    "change of CA, points",
    "recovered trigger before, %",
    "after, %",
    "scan before, p",
    "after, p",
    "cos of the head",
    "cos of the features",
)
_NOTE = (
    "No trigger is known, so nobody can measure the success of an attack. Defenses are ranked by "
    "how often the trigger that a scan recovered still works (detector=[nc]), then by the p-value "
    "of a scan after the defense, then by the "
    "change of clean accuracy on the same test images. A defense that leaves head and features as "
    "they are (cosine 1) has changed little, and a backdoor that no search found can remain."
)


def unknown_headline(cells: Cells) -> tuple[str, str]:
    """Say which defense ranks first, and by what.

    Args:
        cells: The experiments of one board.
    """
    names = _ranked(cells)
    if len(names) < 2:
        return "A network without a known trigger", ""
    values = cells[names[0]].values
    best = names[0][1]
    change = points_text(values["change.ca"].mean)
    after = values["recovered.after"].mean
    if after is not None:
        before = rate_text(values["recovered.before"].mean)
        return (
            f"{best} leaves least of the recovered trigger: it works on {rate_text(after)} % "
            f"(before: {before} %).",
            f"Clean accuracy changed by {change} points. No search finds every trigger.",
        )
    p_value = values["detection.after.p_value"].mean
    if p_value is not None:
        return (
            f"{best} leaves the weakest sign of a backdoor: p = {significant(p_value, 4)}.",
            f"Clean accuracy changed by {change} points. No scan finds every backdoor.",
        )
    return (
        f"{best} costs least clean accuracy: {change} points.",
        "Whether a backdoor is gone was not measured: add detector=[mm_bd,nc].",
    )


def unknown_section(title: str, cells: Cells, reports: dict[str, str]) -> Section:
    """Return the ranking as a table.

    Args:
        title: The heading.
        cells: The experiments of one board.
        reports: The addresses of the reports, by job.
    """
    rows = [
        _row(place, *name, cells[name], reports) for place, name in enumerate(_ranked(cells), 1)
    ]
    table = Table(rows, ("rank", "attack", "defense", *_COLUMNS), "dense", text_columns=3)
    figures = [Figure("", table=table)] if rows else ()
    return Section(title, figures, _NOTE, explained="defenses-without-a-known-trigger")


def _ranked(cells: Cells) -> list[tuple[str, str]]:
    def key(name: tuple[str, str]) -> tuple[float, float, float]:
        values = cells[name].values
        after = values["recovered.after"].mean
        p_value, change = values["detection.after.p_value"].mean, values["change.ca"].mean
        return (
            math.inf if after is None else after,
            math.inf if p_value is None else -p_value,
            math.inf if change is None else -change,
        )

    return sorted(cells, key=key)


def _row(
    place: int, attack: str, defense: str, group: Group, reports: dict[str, str]
) -> list[Cell]:
    values = group.values
    links = [reports[job] for job in group.jobs if job in reports]
    return [
        str(place),
        attack,
        Link(defense, links[0]) if links else defense,
        points_text(values["change.ca"].mean),
        rate_text(values["recovered.before"].mean),
        rate_text(values["recovered.after"].mean),
        _plain(values["detection.before.p_value"], 4),
        _plain(values["detection.after.p_value"], 4),
        _plain(values["shift.head_cosine"], 3),
        _plain(values["shift.feature_cosine"], 3),
    ]


def _plain(spread: Spread, most: int) -> str:
    return NOT_GIVEN if spread.mean is None else significant(spread.mean, most)
