"""Checks of arguments and settings, and the messages of the errors."""

from __future__ import annotations

import math
from typing import Any, get_args


def check_number(
    name: str,
    value: Any,
    *,
    low: float = 0,
    high: float = float("inf"),
    low_open: bool = False,
    whole: bool = False,
) -> None:
    """Check an argument of a constructor.

    Args:
        name: Its name in the error.
        value: The argument.
        low: The smallest valid value.
        high: The largest valid value.
        low_open: Whether ``low`` itself is invalid.
        whole: Whether it has to be an int.

    Raises:
        ValueError: If it is not a finite number within the bounds; True and False are no numbers.

    Example:
        >>> check_number("alpha", 0.2, high=1)
        >>> check_number("folds", 1, low=2, whole=True)
        Traceback (most recent call last):
        ValueError: Expected `folds` to be a whole number of 2 or more, but got 1.
    """
    kind: type = int if whole else float
    # `True` is an int in Python, but a mistake in a configuration.
    number = isinstance(value, int | kind) and not isinstance(value, bool)
    above = number and (low < value if low_open else low <= value)
    if above and value <= high and value < math.inf:
        return
    noun = "a whole number" if whole else "a number"
    if high < math.inf and whole:
        bounds = f"from {low} to {high}"
    elif high < math.inf:
        bounds = f"in {'(' if low_open else '['}{low:g}, {high:g}]"
    else:
        bounds = f"greater than {low:g}" if low_open else f"of {low:g} or more"
    raise ValueError(f"Expected `{name}` to be {noun} {bounds}, but got {value!r}.")


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
        choices: A ``Literal`` of the valid values.

    Raises:
        ValueError: If it is none of them.

    Example:
        >>> from typing import Literal
        >>> check_choice("corner", "left", Literal["left", "right"])
    """
    valid = get_args(choices)
    if value not in valid:
        raise ValueError(f"Expected `{name}` to be one of {', '.join(valid)}, but got {value!r}.")
