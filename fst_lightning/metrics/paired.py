"""The drop in accuracy between two networks on the same images."""

import math
from statistics import NormalDist

from fst_lightning.validate import check_number

_HALVINGS = 60


def paired_drop_interval(
    lost: int, gained: int, total: int, confidence: float = 0.95
) -> tuple[float, float]:
    r"""Bound a drop in accuracy by answers to the same images: Tango's score interval.

    Images that both networks classify correctly, or both wrongly, carry no information. The drop is
    :math:`\delta = p_b - p_c`, the chance that only the first one is right minus the chance that
    only the second one is. The interval holds all :math:`\delta` with

    .. math:: \frac{|b - c - n \delta|}{\sqrt{n (2 \hat p_c + \delta (1 - \delta))}} \le z,

    where :math:`\hat p_c` is the most likely chance of a gain given :math:`\delta`, and z the
    normal quantile of the confidence. At :math:`\delta = 0` this is McNemar's test; it keeps a
    width if nothing was lost or gained (:math:`z^2 / (n + z^2)` on either side), and is far
    narrower than a comparison of two accuracies that were measured on different images.

    Source: Tango, "Equivalence test and confidence interval for the difference in proportions for
    the paired-sample design", Statistics in Medicine 17, 1998.

    Args:
        lost: B, images that only the first network gets right.
        gained: C, images that only the second one gets right.
        total: N, all images, 1 or more.
        confidence: The interval's coverage, in (0, 1).

    Returns:
        The lower and the upper end, in [-1, 1]; below 0 it is a gain.

    Raises:
        ValueError: If a count is negative, there are more changes than images, or the confidence is
            not in (0, 1).

    Example:
        >>> [round(end, 4) for end in paired_drop_interval(6, 2, 200)]
        [-0.0097, 0.0553]
    """
    if min(lost, gained) < 0 or total < 1 or lost + gained > total:
        raise ValueError(
            "Expected `lost` and `gained` of 0 or more, and no more than `total` together, but got "
            f"{lost} and {gained} of {total}."
        )
    check_number("confidence", confidence, low_open=True, high=1, high_open=True)
    z = -NormalDist().inv_cdf((1.0 - confidence) / 2.0)
    return -_highest(gained, lost, total, z), _highest(lost, gained, total, z)


def _highest(lost: int, gained: int, total: int, z: float) -> float:
    """The largest drop that is at most z deviations above the observed one."""
    low, high = -1.0, 1.0
    for _ in range(_HALVINGS):  # the score falls as the drop grows
        middle = (low + high) / 2
        if _score(lost, gained, total, middle) >= -z:
            low = middle
        else:
            high = middle
    return high


def _score(lost: int, gained: int, total: int, drop: float) -> float:
    """The deviation of the counts from a drop, in standard deviations that the drop implies."""
    a = 2 * total
    b = (2 * total - lost + gained) * drop - lost - gained
    c = -gained * drop * (1 - drop)
    chance = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = total * (2 * chance + drop * (1 - drop))
    deviation = lost - gained - total * drop
    if variance <= 0:
        return math.copysign(math.inf, deviation) if deviation else 0.0
    return deviation / math.sqrt(variance)
