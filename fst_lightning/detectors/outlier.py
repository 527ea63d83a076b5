"""How unusual the largest of a few numbers is."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

ALARM = 0.05
"""A p-value of this or less is an alarm; the false alarm rate, if the null holds."""

Null = Literal["gamma", "student", "log_student"]
"""The distribution of the statistics of a network without a backdoor."""

_LARGEST_EXPONENT = 700.0  # of what a float can hold
_LEAST_SPREAD = 1e-3  # of the mean: numbers that are all but equal make no outlier of rounding


def outlier_p_value(statistics: Tensor, null: Null) -> float:
    r"""The probability that the largest of K numbers stands out so far by chance.

    The null distribution :math:`H_0` is fitted to all numbers but the largest, by their mean
    :math:`m` and variance :math:`v`; then

    .. math:: p = 1 - H_0(\max_k s_k)^K

    ``gamma`` is the gamma distribution with shape :math:`m^2 / v` and scale :math:`v / m`, of
    MM-BD: with few classes it is too narrow, and gives more alarms than it says. ``student`` is
    the predictive distribution of one more normal number,
    :math:`m + \sqrt{v (1 + 1/n)}\, t_{n-1}` with :math:`n = K - 1`, which knows how little a few
    numbers say about their spread. ``log_student`` is the same for the logarithms.

    Args:
        statistics: ``(K,)``, K of 3 or more; above 0 for ``gamma`` and ``log_student``.
        null: The family of the null distribution.

    Raises:
        ValueError: If there are fewer than 3 numbers, or some are not positive where they have to
            be.

    Example:
        >>> numbers = torch.tensor([1.0, 1.1, 0.9, 1.05, 0.95, 1.0, 1.02, 0.98, 1.0, 9.0])
        >>> outlier_p_value(numbers, "student") < 1e-6
        True
        >>> outlier_p_value(numbers[:9], "student") > 0.2
        True

    References:
        Wang, Xiang, Miller and Kesidis, "MM-BD: Post-training detection of backdoor attacks with
        arbitrary backdoor pattern types using a maximum margin statistic", IEEE S&P 2024, arXiv
        2205.06900, section 3.3 (the order-statistic p-value with a gamma null).
    """
    from scipy import stats  # takes a moment to import

    numbers = _checked(statistics, null)
    top, mean, variance, count = _fitted(numbers, null)
    if null == "gamma":
        tail = float(stats.gamma.sf(top, mean**2 / variance, scale=variance / mean))
    else:
        spread = math.sqrt(variance * (1 + 1 / (count - 1)))
        tail = float(stats.t.sf((top - mean) / spread, count - 2))
    # 1 - (1 - tail) ** count, exact also for a small tail
    return -math.expm1(count * math.log1p(-min(tail, 1 - 1e-16)))


def outlier_threshold(statistics: Tensor, null: Null, p_value: float) -> float:
    r"""The largest number at which :func:`outlier_p_value` is a given p-value.

    .. math:: H_0^{-1}\big((1 - p)^{1/K}\big)

    Args:
        statistics: ``(K,)``, as for :func:`outlier_p_value`; the largest one does not count.
        null: The family of the null distribution.
        p_value: In (0, 1).

    Example:
        >>> numbers = torch.tensor([1.0, 1.1, 0.9, 1.05, 0.95, 9.0])
        >>> numbers[-1] = outlier_threshold(numbers, "student", 0.05)
        >>> round(outlier_p_value(numbers, "student"), 4)
        0.05
    """
    from scipy import stats  # takes a moment to import

    numbers = _checked(statistics, null)
    _, mean, variance, count = _fitted(numbers, null)
    tail = -math.expm1(math.log1p(-p_value) / count)
    if null == "gamma":
        return float(stats.gamma.isf(tail, mean**2 / variance, scale=variance / mean))
    spread = math.sqrt(variance * (1 + 1 / (count - 1)))
    found = mean + spread * float(stats.t.isf(tail, count - 2))
    return math.exp(min(found, _LARGEST_EXPONENT)) if null == "log_student" else found


def _checked(statistics: Tensor, null: Null) -> Tensor:
    """The statistics in float64; their logarithms for ``log_student``."""
    count = len(statistics)
    if count < 3:
        raise ValueError(f"Expected 3 statistics or more, but got {count}.")
    numbers = statistics.detach().double().cpu()
    if null != "student" and not bool((numbers > 0).all()):
        raise ValueError(f"Expected positive statistics for a {null} null, but got {numbers}.")
    return numbers.log() if null == "log_student" else numbers


def _fitted(numbers: Tensor, null: Null) -> tuple[float, float, float, int]:
    """The largest number, mean and variance of the others, and how many there are in all."""
    largest = int(numbers.argmax())
    rest = torch.cat([numbers[:largest], numbers[largest + 1 :]])
    top, mean = float(numbers[largest]), float(rest.mean())
    least = (_LEAST_SPREAD * (1.0 if null == "log_student" else abs(mean))) ** 2 + 1e-24
    return top, mean, max(float(rest.var()), least), len(numbers)
