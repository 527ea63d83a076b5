"""Arguments out of their bounds are refused, and the message says what is valid."""

import math
import re
from typing import Any, Literal

import numpy as np
import pytest

from fst_lightning.validate import check_choice, check_counts, check_number, check_numbers


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
        (1, {"high": 1, "high_open": True}),
        (-math.inf, {"low": -math.inf}),
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
    check_number("size", 10**400, whole=True)  # more than a float holds
    check_number("size", -5, low=-math.inf)
    check_number("size", np.int64(3), whole=True)
    check_number("size", np.float32(0.5), high=1)


@pytest.mark.parametrize(
    ("limits", "valid"),
    [
        ({}, "a number of 0 or more"),
        ({"low_open": True}, "a number greater than 0"),
        ({"high": 1}, "a number in [0, 1]"),
        ({"high": 0.5, "low_open": True}, "a number in (0, 0.5]"),
        ({"high": 1, "low_open": True, "high_open": True}, "a number in (0, 1)"),
        ({"low": 2, "whole": True}, "a whole number of 2 or more"),
        ({"high": 2**32 - 1, "whole": True}, "a whole number from 0 to 4294967295"),
    ],
)
def test_the_message_says_what_is_valid(limits: dict[str, Any], valid: str) -> None:
    message = re.escape(f"Expected `size` to be {valid}, but got -1.")
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_number("size", -1, **limits)


@pytest.mark.parametrize("values", [[], [1], [1, 2, 3], [1, 2.5], [1, -1], [1, True], "12", 12])
def test_lists_of_numbers_out_of_range_are_named(values: Any) -> None:
    found = re.escape(f"`sizes` to be a list of 2 whole numbers from 0 to 9, but got {values!r}.")
    with pytest.raises(ValueError, match=f"^Expected {found}$"):
        check_numbers("sizes", values, length=2, high=9, whole=True)


def test_lists_of_numbers_of_any_length() -> None:
    check_numbers("sizes", (0.5, 1, 9))
    with pytest.raises(ValueError, match=r"`sizes` to be a list of numbers of 0 or more, but got"):
        check_numbers("sizes", [])


def test_counts_name_the_first_wrong_one() -> None:
    check_counts(epochs=1, images=2)
    with pytest.raises(ValueError, match="`images` to be a whole number of 1 or more, but got 0"):
        check_counts(epochs=1, images=0, steps=0)


def test_choices() -> None:
    check_choice("side", "left", Literal["left", "right"])
    with pytest.raises(ValueError, match="`side` to be one of left, right, but got 'up'"):
        check_choice("side", "up", Literal["left", "right"])
    check_choice("channels", 3, (1, 3))
    for wrong in (2, True, [1], None):
        with pytest.raises(ValueError, match="`channels` to be one of 1, 3, but got"):
            check_choice("channels", wrong, (1, 3))
