"""Arguments out of their bounds are refused, and the message says what is valid."""

import math
import re
from typing import Any, Literal

import pytest

from fst_lightning.validate import check_choice, check_counts, check_number


@pytest.mark.parametrize(
    ("value", "limits"),
    [
        (-0.1, {}),
        (True, {}),
        ("1", {}),
        (math.nan, {}),
        (math.inf, {}),
        (math.inf, {"low": 1, "low_open": True}),
        (0, {"low_open": True}),
        (1.5, {"high": 1}),
        (2.0, {"low": 1, "whole": True}),
    ],
)
def test_arguments_out_of_range_are_named(value: Any, limits: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"Expected `size` to be a .*, but got"):
        check_number("size", value, **limits)


def test_arguments_in_range_pass() -> None:
    check_number("size", 0)
    check_number("size", 1, high=1)
    check_number("size", 3, low=1, whole=True)
    check_number("seed", 2**32 - 1, high=2**32 - 1, whole=True)


@pytest.mark.parametrize(
    ("limits", "valid"),
    [
        ({}, "a number of 0 or more"),
        ({"low_open": True}, "a number greater than 0"),
        ({"high": 1}, "a number in [0, 1]"),
        ({"high": 0.5, "low_open": True}, "a number in (0, 0.5]"),
        ({"low": 2, "whole": True}, "a whole number of 2 or more"),
        ({"high": 2**32 - 1, "whole": True}, "a whole number from 0 to 4294967295"),
    ],
)
def test_the_message_says_what_is_valid(limits: dict[str, Any], valid: str) -> None:
    message = re.escape(f"Expected `size` to be {valid}, but got -1.")
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_number("size", -1, **limits)


def test_counts_name_the_first_wrong_one() -> None:
    check_counts(epochs=1, images=2)
    with pytest.raises(ValueError, match="`images` to be a whole number of 1 or more, but got 0"):
        check_counts(epochs=1, images=0, steps=0)


def test_choices() -> None:
    check_choice("side", "left", Literal["left", "right"])
    with pytest.raises(ValueError, match="`side` to be one of left, right, but got 'up'"):
        check_choice("side", "up", Literal["left", "right"])
