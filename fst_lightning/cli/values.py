"""Compares the values on a command line with the types of their keys; no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Literal

from hydra.core.override_parser.types import Override, QuotedString, Transformer
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fst_lightning.annotations import argument_types, described, fits, nearest_choice
from fst_lightning.cli.paths import is_path
from fst_lightning.configuration import AUTOMATIC

_MOST_VALUES = 256
_PLAIN = ("training", "tuning", "report")
"""Parts without a constructor: a value has the type of the default."""

_OF_THE_RUN: Mapping[str, Any] = {
    **dict.fromkeys(("model.head", "checkpoint_key"), str | None),
    **dict.fromkeys(("num_workers", "val_images"), int | None),
}
"""Keys of which neither a constructor nor the default tells the type."""

_EITHER = ("resume",)
"""Keys that take more than the type of their default."""


def check_values(parsed: Sequence[Override], cfg: DictConfig, defaults: DictConfig) -> str | None:
    """Explain which value on the command line is of another type than its key.

    The type is the annotation of the constructor's argument, if the part is one of this package;
    else that of the default, if this is a number or true or false.

    Args:
        parsed: the overrides.
        cfg: what they compose to, with any of the values of a sweep.
        defaults: what the choices of groups alone compose to.

    Returns:
        None where all values fit; else one line.
    """
    for override in parsed:
        key = override.key_or_group
        try:
            annotated, hint = _type_of(key, cfg, defaults)
        except OmegaConfBaseException:  # a reference that leads nowhere, which the job explains
            continue
        for value in _values(override):
            if isinstance(value, bool) and is_path(key) and key not in _EITHER:
                word = str(value).lower()
                return (
                    f"Expected `{key}` to be a path, but got {word}. A file of this name is "
                    f"""written in two pairs of quotes: '{key}="{word}"'."""
                )
            # Whether null means anything, a default does not say.
            unknown = value is None and not annotated
            if not (unknown or fits(value, hint)):
                return (
                    f"Expected `{key}` to be {described(hint)}, but got {value!r}."
                    f"{nearest_choice(value, hint)}"
                )
    return None


def _type_of(key: str, cfg: DictConfig, defaults: DictConfig) -> tuple[bool, Any]:
    """Whether the type of a key is annotated, and the type; ``Any`` if nothing is known of it."""
    path, _, name = key.rpartition(".")
    part = OmegaConf.select(cfg, path) if path else cfg
    if not isinstance(part, DictConfig):
        return False, Any
    hint = _OF_THE_RUN.get(key, argument_types(str(part.get("_target_"))).get(name))
    annotated = hint is not None
    if not annotated and key not in _EITHER and key.partition(".")[0] in (*_PLAIN, name):
        default = OmegaConf.select(defaults, key)
        hint = type(default) if isinstance(default, bool | int | float) else None
    if hint is None:
        return False, Any
    return annotated, hint | Literal["auto"] if key in AUTOMATIC else hint


def _values(override: Override) -> Iterator[Any]:
    """The plain values of an override; without what is a reference, or has to be set later."""
    if override.is_delete():
        return
    values: list[Any]
    if override.is_discrete_sweep():
        values = list(islice(override.sweep_iterator(Transformer.identity), _MOST_VALUES))
    elif override.is_sweep_override():
        return  # An interval, from which a sweeper chooses numbers.
    else:
        values = [override.value()]
    for value in values:
        plain = value.text if isinstance(value, QuotedString) else value
        if not (isinstance(plain, str) and ("${" in plain or plain == "???")):
            yield plain
