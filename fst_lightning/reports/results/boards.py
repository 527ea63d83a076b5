"""The experiments of a sweep as boards of attacks by defenses."""

from fst_lightning.reports.numbers import NOT_GIVEN
from fst_lightning.reports.results.sweep import Group, SweepSummary

Cells = dict[tuple[str, str], Group]
"""The experiments of one board, by (attack, defense)."""


def boards_of(summary: SweepSummary) -> dict[str, Cells]:
    """One board for every combination of what belongs to neither attack nor defense.

    Args:
        summary: the sweep; its trainings are left out.
    """
    boards: dict[str, Cells] = {}
    for group in summary.groups:
        if group.settings.get("task") != "purify":
            continue
        attack = _named(summary, group, "attack")
        defense = _named(summary, group, "defense")
        rest = [
            f"{name}={group.settings.get(name, NOT_GIVEN)}"
            for name in summary.varying
            if name.partition(".")[0] not in ("attack", "defense", "tuning", "task")
        ]
        boards.setdefault(" ".join(rest), {})[attack, defense] = group
    return boards


def _named(summary: SweepSummary, group: Group, owner: str) -> str:
    """Name an attack or a defense, with what varies of it: `fst alpha=0.1 lr=0.02`.

    The recipe of a tuning is a part of the defense.
    """
    owners = (owner, "tuning") if owner == "defense" else (owner,)
    words = [str(group.settings.get(owner, NOT_GIVEN))]
    words += [
        f"{name.partition('.')[2].removeprefix('optimizer.')}={group.settings[name]}"
        for name in summary.varying
        if name.startswith(tuple(f"{part}." for part in owners)) and name in group.settings
    ]
    return " ".join(words)
