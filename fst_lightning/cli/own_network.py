"""Lets a command line name a network class of the user's own: ``model._target_=package.Class``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

_GROUP = "model"
_TARGET = f"{_GROUP}._target_"
_OF_THE_RUN = ("_target_", "head")
"""Keys of every option of the group that are no arguments of the network."""


def names_network(lines: Sequence[str]) -> bool:
    """Whether a command line names a class for ``model``.

    Args:
        lines: the arguments or overrides.

    Example:
        >>> names_network(["model._target_=nets.Net"]), names_network(["model=resnet18"])
        (True, False)
    """
    return any(_key(line) == _TARGET for line in lines)


def with_own_arguments(arguments: Sequence[str]) -> list[str]:
    """Let every ``model.KEY=`` and ``+model.KEY=`` set a key that the default network may lack.

    Args:
        arguments: of a command line that names a class for ``model``.

    Example:
        >>> with_own_arguments(["model._target_=nets.Net", "+model.width=32", "seed=1"])
        ['++model._target_=nets.Net', '++model.width=32', 'seed=1']
    """
    return [
        f"++{line.lstrip('+')}" if line.lstrip("+").startswith(f"{_GROUP}.") else line
        for line in arguments
    ]


def import_from_here() -> None:
    """Let classes be imported from the current folder, after all installed packages."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)


def own_network(
    cfg: DictConfig, choices: dict[str, str], overrides: Sequence[str]
) -> tuple[DictConfig, dict[str, str]]:
    """Leave out the keys of the default network if the command line names another class.

    The class is called with the arguments of the command line alone. Its dotted name takes the
    place of the option's name.

    Args:
        cfg: the composed configuration.
        choices: the option that was chosen of every group.
        overrides: of the command line.

    Returns:
        Both as they count.
    """
    if not names_network(overrides) or not OmegaConf.is_dict(cfg.get(_GROUP)):
        return cfg, choices
    given = {_key(line).split(".")[1] for line in overrides if _key(line).startswith(f"{_GROUP}.")}
    kept = [key for key in cfg.model if key in _OF_THE_RUN or key in given]
    own: DictConfig = cfg.copy()
    OmegaConf.set_struct(own, False)
    own.model = OmegaConf.masked_copy(cfg.model, kept)
    OmegaConf.set_struct(own, True)
    return own, {**choices, _GROUP: str(cfg.model.get("_target_"))}


def _key(line: str) -> str:
    return line.lstrip("+~").partition("=")[0]
