"""The experiments of a sweep as boards of attacks by defenses."""

from collections.abc import Iterable

from fst_lightning.reports.numbers import NOT_GIVEN
from fst_lightning.reports.results.settings import Setting
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
    for name in summary.varying:
        if name.startswith(tuple(f"{part}." for part in owners)) and name in group.settings:
            value = setting_text(summary, group, name)
            words.append(f"{name.partition('.')[2].removeprefix('optimizer.')}={value}")
    return " ".join(words)


def setting_text(summary: SweepSummary, group: Group, name: str) -> str:
    """Write a setting of a group with the digits that tell it from those of the other groups.

    Args:
        summary: The sweep.
        group: One of its groups.
        name: The setting, such as ``defense.alpha``.
    """
    if name not in group.settings:
        return NOT_GIVEN
    others = [each.settings[name] for each in summary.groups if name in each.settings]
    return distinct_text(group.settings[name], others)


def distinct_text(value: Setting, others: Iterable[Setting]) -> str:
    """Write a number with three significant digits, or with as many as tell it from others.

    Args:
        value: What to write. Anything but a float is written as it is.
        others: The values that must not read the same. They may contain the value itself.

    Example:
        >>> numbers = [0.123456, 0.123499, 0.5]
        >>> [distinct_text(number, numbers) for number in numbers]
        ['0.12346', '0.1235', '0.5']
    """
    if not isinstance(value, float):
        return str(value)
    floats = {other for other in others if isinstance(other, float)} - {value}
    for digits in range(3, 18):
        text = f"{value:.{digits}g}"
        if all(f"{other:.{digits}g}" != text for other in floats):
            return str(value) if float(text) == value else text
    return str(value)
