"""Attacks and defenses by the names that the command line uses."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from typing import TYPE_CHECKING, Any, Literal, cast

from fst_lightning.configuration import conf_folder

if TYPE_CHECKING:
    from fst_lightning.attacks import Attack
    from fst_lightning.defenses import Defense

Group = Literal["attack", "defense"]

_TARGET = re.compile(r"^_target_: *([\w.]+)", re.MULTILINE)


def list_attacks() -> list[str]:
    """The names that :func:`create_attack` takes, sorted.

    Example:
        >>> "badnets" in list_attacks()
        True
    """
    return sorted(_targets("attack"))


def list_defenses() -> list[str]:
    """The names that :func:`create_defense` and :func:`~fst_lightning.purify` take, sorted.

    Example:
        >>> "fst" in list_defenses()
        True
    """
    return sorted(_targets("defense"))


def create_attack(name: str, **arguments: Any) -> Attack:
    """Make an attack by its name.

    Args:
        name: One of :func:`list_attacks`.
        arguments: Of the attack's constructor.

    Raises:
        ValueError: If there is no such attack, or an argument is out of its range.
        TypeError: If the attack has no such argument.

    Example:
        >>> create_attack("blended", blend_alpha=0.1).blend_alpha
        0.1
    """
    return cast("Attack", _create("attack", name, arguments))


def create_defense(name: str, **arguments: Any) -> Defense:
    """Make a defense by its name.

    Args:
        name: One of :func:`list_defenses`.
        arguments: Of the defense's constructor.

    Raises:
        ValueError: If there is no such defense, or an argument is out of its range.
        TypeError: If the defense has no such argument.

    Example:
        >>> create_defense("fst", alpha=0.1).alpha
        0.1
    """
    return cast("Defense", _create("defense", name, arguments))


def _create(group: Group, name: str, arguments: dict[str, Any]) -> Any:
    targets = _targets(group)
    if name not in targets:
        raise ValueError(
            f"Expected `{group}` to be one of {', '.join(sorted(targets))}, but got {name!r}."
            f"{_hint(name, list(targets))}"
        )
    module, _, class_name = targets[name].rpartition(".")
    kind = getattr(importlib.import_module(module), class_name)
    known = list(inspect.signature(kind).parameters)
    for argument in arguments:
        if argument not in known:
            raise TypeError(
                f"Expected arguments of {group} {name} ({', '.join(known) or 'it has none'}), but "
                f"got `{argument}`.{_hint(argument, known)}"
            )
    return kind(**arguments)


def _targets(group: Group) -> dict[str, str]:
    """The dotted name of every class, by its name on the command line."""
    found = {}
    for file in (conf_folder() / group).glob("*.yaml"):
        target = _TARGET.search(file.read_text(encoding="utf-8"))
        if target is not None:
            found[file.stem] = target[1]
    return found


def _hint(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    return f" Did you mean {close[0]}?" if close else ""
