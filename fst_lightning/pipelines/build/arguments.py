"""Compares the values of a configuration with the types of a constructor's arguments."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Container
from typing import Any, get_type_hints

from hydra._internal.utils import _locate  # the public one logs what it does not find
from omegaconf import DictConfig, OmegaConf

from fst_lightning.annotations import described, fits
from fst_lightning.configuration import RENAMED

_LISTED = 10


def check_arguments(config: DictConfig, given: Container[str] = ()) -> None:
    """Refuse a value of another type than the target's annotation.

    Hydra passes on every value of the command line. Without this check,
    ``attack.poison_ratio=abc`` would fail deep in the code, and ``attack.target_label=1.5`` not at
    all.

    Args:
        config: With a ``_target_``; its other keys are arguments.
        given: Keys whose value will be replaced, and is not checked.

    Raises:
        ValueError: If a value has the wrong type; names the key, the value and the valid type.
    """
    target = located(config)
    try:
        hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
        parameters = inspect.signature(target).parameters
    except (NameError, TypeError, ValueError):
        return  # A foreign class whose annotations cannot be read.
    for name in config:
        key = config._get_full_key(name)
        if key in RENAMED and name not in parameters:
            raise ValueError(f"Expected `{key}` under its new name, which is `{RENAMED[key]}`.")
        if name not in hints or name not in parameters or name in given:
            continue
        if OmegaConf.is_missing(config, name):
            raise ValueError(f"Expected `{key}` to be set: it has no default ({key}=...).")
        value = config[name]
        if OmegaConf.is_dict(value):
            continue
        if value is None and name == "total_steps" and config.get("_partial_"):
            continue  # A recipe may leave it open; it is filled in when the training begins.
        hint, plain = hints[str(name)], value
        if OmegaConf.is_list(value):
            plain = OmegaConf.to_container(value)
        # The constructor checks its choices. `auto` is not one of the Trainer's own.
        if value != parameters[str(name)].default and not fits(plain, hint, choices=False):
            raise ValueError(f"Expected `{key}` to be {described(hint)}, but got {value!r}.")


def located(config: DictConfig) -> Any:
    """The class or function that a part of the configuration names.

    Raises:
        ValueError: If the name does not exist; lists what its module has instead.
    """
    key = config._get_full_key("_target_")
    name = config.get("_target_")
    valid = f"Expected `{key}` to be the dotted name of a class or function"
    if not isinstance(name, str) or not name:
        raise ValueError(f"{valid}, but got {name!r}.")
    try:
        found = _locate(name)
    except Exception as error:
        raise ValueError(
            f"{valid} that can be imported, but got {name!r}: {_why_not_found(name, error)}"
        ) from error
    if not callable(found):
        raise ValueError(f"{valid}, but {name!r} is a {type(found).__name__}.")
    return found


def _why_not_found(name: str, error: Exception) -> str:
    """One or two sentences on the first part of a dotted name that does not exist."""
    if "." not in name:
        return "the name of its module is missing. Write it as module.Class."
    cause = error.__cause__
    path, _, wanted = name.rpartition(".")
    module = sys.modules.get(path)
    if module is not None:
        there = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        own = [n for n in there if getattr(vars(module)[n], "__module__", None) == path] or there
        near = difflib.get_close_matches(wanted, own, n=1)
        return (
            f"{path} ({getattr(module, '__file__', None) or 'a folder'}) has no {wanted}."
            + (f" Did you mean {near[0]}?" if near else "")
            + f" It has: {', '.join(sorted(own)[:_LISTED]) or 'no class or function'}."
        )
    if isinstance(cause, ModuleNotFoundError) and f"{name}.".startswith(f"{cause.name}."):
        return (
            f"there is no module {cause.name}. Start the command in the folder that holds it, or "
            "put that folder into PYTHONPATH."
        )
    why = f"{type(cause).__name__}: {cause}" if cause is not None else str(error)
    return f"importing it fails with {' '.join(why.split())}"


def accepted(target: Any) -> dict[str, inspect.Parameter] | None:
    """The parameters that a class or function takes by name; None if it takes any name.

    Example:
        >>> list(accepted(lambda width, /, depth=1, *, bias: None) or {})
        ['depth', 'bias']
    """
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: parameter for name, parameter in parameters.items() if parameter.kind in named}


def check_names(config: DictConfig, given: Container[str] = ()) -> None:
    """Refuse arguments that the target does not have, and missing arguments that it needs.

    Args:
        config: With a ``_target_``; its other keys are arguments.
        given: Arguments that it gets in addition.

    Raises:
        ValueError: If the arguments do not fit; lists those that do.
    """
    parameters = accepted(located(config))
    if parameters is None:
        return
    name = config._target_
    listed = ", ".join(n for n in parameters if n not in given) or "none"
    for key in map(str, config):
        if key not in parameters and not key.startswith("_"):
            near = difflib.get_close_matches(key, parameters, n=1)
            raise ValueError(
                f"Expected `{config._get_full_key(key)}` to be an argument of {name}, but it has "
                f"none of this name.{f' Did you mean {near[0]}?' if near else ''} "
                f"Its arguments: {listed}."
            )
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in config and key not in given:
            full = config._get_full_key(key)
            raise ValueError(
                f"Expected `{full}` to be set: {name} needs it (+{full}=...). "
                f"Its arguments: {listed}."
            )
