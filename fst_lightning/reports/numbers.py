"""Rates and differences as a person reads them."""

from __future__ import annotations

import math

NOT_GIVEN = "-"


def percent(rate: float | None) -> str:
    """Write a fraction as a percentage with two decimals, without the sign.

    Example:
        >>> percent(0.91824)
        '91.82'
    """
    return NOT_GIVEN if rate is None else f"{100 * rate:.2f}"


def signed_points(difference: float | None) -> str:
    """Write a difference of fractions in percentage points.

    Example:
        >>> signed_points(-0.0102), signed_points(-1e-9)
        ('-1.02', '+0.00')
    """
    # Adding zero turns the -0.0 of a tiny loss into 0.0.
    return NOT_GIVEN if difference is None else f"{round(100 * difference, 2) + 0.0:+.2f}"


def significant(value: float, most: int = 2) -> str:
    """Write a number with three significant digits.

    Args:
        value: The number.
        most: The greatest number of decimals.

    Example:
        >>> [significant(number) for number in (91.824, 1.2345, 0.0123, 100.0, 1234.5)]
        ['91.8', '1.23', '0.01', '100', '1234']
    """
    return f"{value:.{decimals(value, most)}f}"


def decimals(value: float, most: int = 2) -> int:
    """The number of decimals that three significant digits leave, at most ``most``.

    Example:
        >>> decimals(91.824), decimals(99.96), decimals(0.0)
        (1, 0, 2)
    """
    rounded = abs(float(f"{value:.3g}"))
    return min(most, max(0, 2 - math.floor(math.log10(rounded)))) if rounded else most


def rate_text(rate: float | None) -> str:
    """Write a fraction as a percentage with three significant digits, without the sign.

    A rate below 1 never reads 100, and a rate above 0 never reads 0.

    Example:
        >>> [rate_text(rate) for rate in (0.91824, 0.0123, 1.0, 0.9996, 0.00001)]
        ['91.8', '1.23', '100', '99.96', '<0.01']
    """
    if rate is None:
        return NOT_GIVEN
    text = significant(100 * rate)
    if text == "100" and rate < 1:
        return f"{min(math.floor(10_000 * rate), 9999) / 100:.2f}"
    return "<0.01" if text == "0.00" and rate > 0 else text


def points_text(difference: float | None) -> str:
    """Write a difference of fractions in percentage points, with three significant digits.

    Example:
        >>> [points_text(number) for number in (0.0102, 0.118, -1e-9)]
        ['+1.02', '+11.8', '+0.00']
    """
    if difference is None:
        return NOT_GIVEN
    points = 100 * difference
    return minus(f"{round(points, 2) + 0.0:+.{decimals(points)}f}")


def minus(text: str) -> str:
    r"""Write numbers with a minus sign in place of the hyphen.

    Example:
        >>> minus("-1").encode()
        b'\xe2\x88\x921'
    """
    return text.replace("-", "\N{MINUS SIGN}")
