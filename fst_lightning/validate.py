"""Checks of arguments and settings, and the messages of the errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, get_args


def check_number(
    name: str,
    value: Any,
    *,
    low: float = 0,
    high: float = math.inf,
    low_open: bool = False,
    high_open: bool = False,
    whole: bool = False,
) -> None:
    """Check an argument that is one number.

    Args:
        name: Its name in the error.
        value: The argument.
        low: The smallest valid value.
        high: The largest valid value.
        low_open: Whether ``low`` itself is invalid.
        high_open: Whether ``high`` itself is invalid.
        whole: Whether the number must be an integer.

    Raises:
        ValueError: If it is not a finite number within the bounds. ``True`` and ``False`` are no
            numbers.

    Example:
        >>> check_number("alpha", 0.2, high=1)
        >>> check_number("folds", 1, low=2, whole=True)
        Traceback (most recent call last):
        ValueError: Expected `folds` to be a whole number of 2 or more, but got 1.
    """
    if not _is_valid(value, low, high, low_open, high_open, whole):
        noun = "a whole number" if whole else "a number"
        bounds = _bounds(low, high, low_open, high_open, whole)
        raise ValueError(f"Expected `{name}` to be {noun}{bounds}, but got {value!r}.")


def check_numbers(
    name: str,
    values: Any,
    *,
    length: int | None = None,
    low: float = 0,
    high: float = math.inf,
    whole: bool = False,
) -> None:
    """Check an argument that is a list of numbers.

    Args:
        name: Its name in the error.
        values: The argument.
        length: How many numbers it must hold; None for one or more.
        low: The smallest valid number.
        high: The largest valid number.
        whole: Whether the numbers must be integers.

    Raises:
        ValueError: If it is not a list of as many finite numbers within the bounds.

    Example:
        >>> check_numbers("opacities", [0.5, 1.0], length=2, high=1)
        >>> check_numbers("opacities", [0.5], length=2, high=1)
        Traceback (most recent call last):
        ValueError: Expected `opacities` to be a list of 2 numbers in [0, 1], but got [0.5].
    """
    listed = isinstance(values, Sequence) and not isinstance(values, str)
    enough = listed and (len(values) == length if length is not None else len(values) > 0)
    if not enough or not all(_is_valid(value, low, high, False, False, whole) for value in values):
        count = "" if length is None else f"{length} "
        noun = "whole numbers" if whole else "numbers"
        found = list(values) if listed else values
        raise ValueError(
            f"Expected `{name}` to be a list of {count}{noun}"
            f"{_bounds(low, high, False, False, whole)}, but got {found!r}."
        )


def check_counts(**values: object) -> None:
    """Check numbers of epochs, images or steps.

    Args:
        values: The arguments by name.

    Raises:
        ValueError: If one is not a whole number of 1 or more; names the first one.

    Example:
        >>> check_counts(epochs=3, batch_size=32)
    """
    for name, value in values.items():
        check_number(name, value, low=1, whole=True)


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Check an argument that takes one of a few values.

    Args:
        name: Its name in the error.
        value: The argument.
        choices: The valid values, as a ``Literal`` or a tuple.

    Raises:
        ValueError: If it is none of them.

    Example:
        >>> from typing import Literal
        >>> check_choice("corner", "left", Literal["left", "right"])
    """
    valid = get_args(choices) or choices
    # `True == 1` in Python.
    if isinstance(value, bool) or value not in valid:
        listed = ", ".join(map(str, valid))
        raise ValueError(f"Expected `{name}` to be one of {listed}, but got {value!r}.")


def _is_valid(
    value: Any, low: float, high: float, low_open: bool, high_open: bool, whole: bool
) -> bool:
    # `True` is an int in Python, but a mistake in a configuration.
    number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if not number:
        return False
    above = low < value if low_open else low <= value
    below = value < high if high_open else value <= high
    return bool(above and below and -math.inf < value < math.inf)


def _bounds(low: float, high: float, low_open: bool, high_open: bool, whole: bool) -> str:
    if high < math.inf and whole:
        return f" from {low} to {high}"
    if high < math.inf:
        return f" in {'(' if low_open else '['}{low:g}, {high:g}{')' if high_open else ']'}"
    if low == -math.inf:
        return ""
    return f" greater than {low:g}" if low_open else f" of {low:g} or more"
