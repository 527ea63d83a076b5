"""Confidence intervals of a counted rate and of the difference of two."""

import math
from statistics import NormalDist

from fst_lightning.validate import check_number


def wilson_interval(successes: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    r"""Bound the probability behind a count: Wilson's score interval.

    All :math:`p` with :math:`|\hat p - p| \le z \sqrt{p (1 - p) / n}`. Here :math:`\hat p` is
    successes / total and :math:`z` the normal quantile of the confidence. The interval stays inside
    [0, 1] and keeps a width at 0 and at 1, where the usual
    :math:`\hat p \pm z \sqrt{\hat p (1 - \hat p) / n}` collapses.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference",
    JASA 22, 1927.

    Args:
        successes: Rows that count, in [0, total].
        total: All rows, at least 1.
        confidence: The interval's coverage, in (0, 1).

    Returns:
        The lower and the upper end, in [0, 1].

    Raises:
        ValueError: If there are no rows, more successes than rows, or a confidence outside (0, 1).

    Example:
        >>> [round(end, 4) for end in wilson_interval(9, 10)]
        [0.5958, 0.9821]
        >>> wilson_interval(0, 10)[0]
        0.0
    """
    check_number("total", total, low=1)
    check_number("successes", successes, high=total)
    check_number("confidence", confidence, low_open=True, high=1, high_open=True)
    # The lower tail: 0.5 + confidence / 2 rounds to 1, where there is no quantile.
    z = -NormalDist().inv_cdf((1.0 - confidence) / 2.0)
    rate, share = successes / total, z * z / total
    center = (rate + share / 2.0) / (1.0 + share)
    reach = math.sqrt(share * rate * (1.0 - rate) + share * share / 4.0) / (1.0 + share)
    # Rounding loses the exact ends if no row, or each row, was counted.
    low = 0.0 if successes == 0 else max(0.0, min(center - reach, rate))
    high = 1.0 if successes == total else min(1.0, max(center + reach, rate))
    return low, high


def rate_difference_interval(
    first: tuple[int, int], second: tuple[int, int], confidence: float = 0.95
) -> tuple[float, float]:
    r"""Bound the difference of two rates that were counted apart: Newcombe's hybrid score interval.

    .. math:: \Big[d - \sqrt{(\hat p_1 - l_1)^2 + (u_2 - \hat p_2)^2},\;
        d + \sqrt{(u_1 - \hat p_1)^2 + (\hat p_2 - l_2)^2}\Big]

    Here :math:`[l_i, u_i]` are Wilson's intervals of the rates :math:`\hat p_i`, and
    :math:`d = \hat p_1 - \hat p_2`. If both rates were counted on the same images,
    `paired_drop_interval` is narrower.

    Source: Newcombe, "Interval estimation for the difference between independent proportions:
    comparison of eleven methods", Statistics in Medicine 17, 1998, method 10.

    Args:
        first: Rows that count, and all rows, at least 1.
        second: The same for the rate that is subtracted.
        confidence: The interval's coverage, in (0, 1).

    Returns:
        The lower and the upper end, in [-1, 1].

    Raises:
        ValueError: If there are no rows, more successes than rows, or a confidence outside (0, 1).

    Example:
        >>> [round(end, 4) for end in rate_difference_interval((56, 70), (48, 80))]
        [0.0524, 0.3339]
    """
    rates = [successes / total if total else 0.0 for successes, total in (first, second)]
    (low_1, high_1), (low_2, high_2) = (
        wilson_interval(*counts, confidence) for counts in (first, second)
    )
    difference = rates[0] - rates[1]
    below = math.hypot(rates[0] - low_1, high_2 - rates[1])
    above = math.hypot(high_1 - rates[0], rates[1] - low_2)
    return max(-1.0, difference - below), min(1.0, difference + above)
