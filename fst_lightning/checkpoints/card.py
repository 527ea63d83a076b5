"""The description in a checkpoint of this package: plain facts, never a class path."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from fst_lightning.checkpoints.errors import CheckpointError, shown

__all__ = ["CARD_KEY", "ModelCard", "ModelChoice", "Plain"]

CARD_KEY = "fst_lightning"
"""Name of the card in a safetensors file's metadata and in a Lightning checkpoint."""

Plain = bool | int | float | str | None
"""A value that JSON holds and that runs nothing."""

_SCHEMA = 1
_JSON_LIMIT = 10_000_000
_STRING_LIMIT = 1_000
_ITEM_LIMIT = 1_000
_INTEGER_LIMIT = 2**63
_FIELDS = (
    "schema_version",
    "model",
    "num_classes",
    "classes",
    "image_size",
    "mean",
    "std",
    "attack",
    "head",
)


class ModelChoice(TypedDict):
    """The network: a key of `MODELS`, and its arguments apart from the classes."""

    name: str
    arguments: dict[str, Plain]


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What the network is, what it was trained on and how images are normalized.

    Everything is checked when a card is made, because most cards come out of files that
    nobody trusts.

    Args:
        model: The network's name and its arguments.
        num_classes: Number of classes, 2 to 100,000.
        classes: One name for each class.
        image_size: Side of the square images in pixels, 1 to 4,096.
        mean: Per-channel mean of images in [0, 1]; 1 to 4 finite numbers.
        std: Per-channel standard deviation, positive; as many numbers as `mean`.
        attack: `name` and settings of the attack, or None if it is unknown. Values are plain or
            flat sequences of plain values.
        head: Dotted name of the linear layer that makes the logits, or None if there is none.
        schema_version: 1.

    Raises:
        CheckpointError: If a value has another type or lies outside its bounds.

    Example:
        >>> card = ModelCard(
        ...     model={"name": "small_resnet", "arguments": {"width": 8}},
        ...     num_classes=2, classes=("cat", "dog"), image_size=32,
        ...     mean=(0.5,), std=(0.25,), attack=None, head="fc")
        >>> ModelCard.from_json(card.to_json()) == card
        True
    """

    model: ModelChoice
    num_classes: int
    classes: tuple[str, ...]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    attack: dict[str, Plain | tuple[Plain, ...]] | None
    head: str | None
    schema_version: int = _SCHEMA

    def __post_init__(self) -> None:
        values = _checked({name: getattr(self, name) for name in _FIELDS})
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def to_json(self) -> str:
        """Return the card as one line of JSON."""
        return json.dumps({name: getattr(self, name) for name in _FIELDS}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> ModelCard:
        """Read a card from JSON that may have been written by anybody.

        Args:
            text: The JSON, at most 10 MB.

        Raises:
            CheckpointError: If the text is no card of schema 1.
        """
        if not isinstance(text, str):
            raise _odd("the card", text, "a JSON string")
        if len(text) > _JSON_LIMIT:
            raise CheckpointError(
                f"Expected a card of at most {_JSON_LIMIT:,} characters, but got {len(text):,}."
            )
        try:
            values = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(
                "Expected the card to be JSON, but it cannot be parsed."
            ) from None
        if not isinstance(values, dict):
            raise _odd("the card", values, "a JSON object")
        version = values.get("schema_version")
        if type(version) is not int or version != _SCHEMA:
            raise _odd("`schema_version`", version, f"{_SCHEMA}; a newer version may read it")
        if set(values) != set(_FIELDS):
            unlike = sorted(set(values) ^ set(_FIELDS))[0]
            kind = "lacks" if unlike in _FIELDS else "has the unknown field"
            raise CheckpointError(
                f"Expected the card's fields {_FIELDS}, but it {kind} {shown(unlike)}."
            )
        return cls(**_checked(values))  # type: ignore[arg-type]


def _odd(what: str, value: object, valid: str) -> CheckpointError:
    return CheckpointError(f"Expected {what} to be {valid}, but got {shown(_brief(value))}.")


def _brief(value: object) -> str:
    if isinstance(value, str | int | float | bool) or value is None:
        try:
            return repr(value)
        except ValueError:  # an integer with more digits than Python prints
            return "a huge integer"
    return type(value).__name__


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise CheckpointError("Expected every name in the card once, but one is repeated.")
    return values


def _no_constant(name: str) -> object:
    raise CheckpointError(f"Expected finite numbers in the card, but got {name}.")


def _checked(values: Mapping[str, object]) -> dict[str, object]:
    if type(values["schema_version"]) is not int or values["schema_version"] != _SCHEMA:
        raise _odd("`schema_version`", values["schema_version"], str(_SCHEMA))
    num_classes = _integer("num_classes", values["num_classes"], 2, 100_000)
    classes = values["classes"]
    if not isinstance(classes, list | tuple) or len(classes) != num_classes:
        raise _odd("`classes`", classes, f"a sequence of {num_classes} names")
    mean = _channels("mean", values["mean"])
    std = _channels("std", values["std"])
    if len(mean) != len(std):
        raise CheckpointError(
            f"Expected `mean` and `std` to be equally long, but got {len(mean)} and {len(std)}."
        )
    if min(std) <= 0:
        raise _odd("`std`", min(std), "positive")
    return {
        "schema_version": _SCHEMA,
        "model": _model(values["model"]),
        "num_classes": num_classes,
        "classes": tuple(_text("classes", name) for name in classes),
        "image_size": _integer("image_size", values["image_size"], 1, 4_096),
        "mean": mean,
        "std": std,
        "attack": _attack(values["attack"]),
        "head": None if values["head"] is None else _text("head", values["head"], empty=False),
    }


def _integer(name: str, value: object, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise _odd(f"`{name}`", value, f"an integer in [{low}, {high}]")
    return value


def _text(name: str, value: object, *, empty: bool = True) -> str:
    valid = f"printable text of {0 if empty else 1} to {_STRING_LIMIT:,} characters"
    if type(value) is not str or len(value) > _STRING_LIMIT or not value.isprintable():
        raise _odd(f"`{name}`", value, valid)
    if not empty and not value:
        raise _odd(f"`{name}`", value, valid)
    return value


def _channels(name: str, value: object) -> tuple[float, ...]:
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= 4:
        raise _odd(f"`{name}`", value, "1 to 4 numbers")
    return tuple(_number(name, item) for item in value)


def _number(name: str, value: object) -> float:
    if type(value) not in (int, float) or not _bounded(value):
        raise _odd(f"`{name}`", value, "finite numbers")
    return float(value)  # type: ignore[arg-type]


def _bounded(value: object) -> bool:
    if type(value) is int:
        return abs(value) < _INTEGER_LIMIT
    return type(value) is not float or math.isfinite(value)


def _plain(name: str, value: object) -> Plain:
    if type(value) is str:
        return _text(name, value)
    if (value is None or type(value) in (bool, int, float)) and _bounded(value):
        return value  # type: ignore[return-value]
    raise _odd(f"`{name}`", value, "a number, a string, a boolean or null")


def _dictionary(name: str, value: object) -> dict[str, object]:
    if not isinstance(value, Mapping) or len(value) > _ITEM_LIMIT:
        raise _odd(f"`{name}`", value, f"an object of at most {_ITEM_LIMIT:,} items")
    return {_text(name, key, empty=False): item for key, item in value.items()}


def _model(value: object) -> ModelChoice:
    model = _dictionary("model", value)
    if set(model) != {"name", "arguments"}:
        raise _odd("`model`", value, "an object of `name` and `arguments`")
    arguments = _dictionary("model.arguments", model["arguments"])
    return {
        "name": _text("model.name", model["name"], empty=False),
        "arguments": {
            key: _plain(f"model.arguments.{key}", item) for key, item in arguments.items()
        },
    }


def _attack(value: object) -> dict[str, Plain | tuple[Plain, ...]] | None:
    if value is None:
        return None
    return {
        key: _setting(f"attack.{key}", item) for key, item in _dictionary("attack", value).items()
    }


def _setting(name: str, value: object) -> Plain | tuple[Plain, ...]:
    if not isinstance(value, list | tuple):
        return _plain(name, value)
    items: Sequence[object] = value
    if len(items) > _ITEM_LIMIT:
        raise _odd(f"`{name}`", value, f"at most {_ITEM_LIMIT:,} items")
    return tuple(_plain(name, item) for item in items)
