"""Rates and differences as a person reads them."""

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
