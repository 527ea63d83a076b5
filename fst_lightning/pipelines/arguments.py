"""Compares the values of a configuration with the types that a constructor asks for."""

from __future__ import annotations

import collections.abc
import inspect
import types
from collections.abc import Container
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra._internal.utils import _locate  # the public one logs what it does not find
from omegaconf import DictConfig, OmegaConf

_NUMBERS = (int, float)


def check_arguments(config: DictConfig, given: Container[str] = ()) -> None:
    """Refuse a value of another type than the target's annotation.

    Hydra passes on whatever the command line says: ``attack.poison_ratio=abc`` would surface as
    some comparison of a number with text, deep in the code, ``attack.target_label=1.5`` never.

    Args:
        config: with a ``_target_``; its other keys are arguments.
        given: keys whose value is replaced, and is not looked at.

    Raises:
        ValueError: that names the key, the value and what is valid.
    """
    target = located(config)
    try:
        hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
        parameters = inspect.signature(target).parameters
    except (NameError, TypeError, ValueError):
        return  # Somebody else's annotations: nothing to compare with.
    for name in config:
        if name not in hints or name not in parameters or name in given:
            continue
        if OmegaConf.is_missing(config, name):
            key = config._get_full_key(name)
            raise ValueError(f"Expected `{key}` to be set: it has no default ({key}=...).")
        value = config[name]
        if OmegaConf.is_dict(value):
            continue
        if value is None and name == "total_steps" and config.get("_partial_"):
            continue  # A recipe may leave it open: it is filled in when the training begins.
        if value != parameters[str(name)].default and not _fits(value, hints[str(name)]):
            raise ValueError(
                f"Expected `{config._get_full_key(name)}` to be {_described(hints[str(name)])}, "
                f"but got {value!r}."
            )


def located(config: DictConfig) -> Any:
    """The class or function that a part of the configuration names.

    Raises:
        ValueError: where there is none of this name.
    """
    key = config._get_full_key("_target_")
    name = config.get("_target_")
    valid = f"Expected `{key}` to be the dotted name of a class or function"
    if not isinstance(name, str) or not name:
        raise ValueError(f"{valid}, but got {name!r}.")
    try:
        found = _locate(name)
    except Exception as error:
        why = str(error).splitlines()
        raise ValueError(
            f"{valid} that can be imported, but got {name!r}: {' '.join(why[1:] or why)}"
        ) from error
    if not callable(found):
        raise ValueError(f"{valid}, but {name!r} is a {type(found).__name__}.")
    return found


def _fits(value: Any, hint: Any) -> bool:
    kind = get_origin(hint) or hint
    if kind in (Union, types.UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if kind is Literal or kind is Any:
        return True  # The constructor knows its choices.
    if kind in _NUMBERS:
        return isinstance(value, int | kind) and not isinstance(value, bool)
    if kind in (collections.abc.Sequence, list, tuple):
        return OmegaConf.is_list(value)
    try:
        return isinstance(value, kind)
    except TypeError:
        return True  # Nothing that can be asked at run time, a protocol for example.


def _described(hint: Any) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    kind = get_origin(hint) or hint
    if kind in (Union, types.UnionType):
        return " or ".join(_described(option) for option in get_args(hint))
    if kind is types.NoneType:
        return "null"
    if kind in (collections.abc.Sequence, list, tuple):
        return "a list"
    return words.get(kind, getattr(kind, "__name__", str(kind)))
