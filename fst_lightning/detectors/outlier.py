"""How unusual the largest of a few numbers is."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Null = Literal["gamma", "student", "log_student"]
"""The distribution of the statistics of a network without a backdoor."""

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

    count = len(statistics)
    if count < 3:
        raise ValueError(f"Expected 3 statistics or more, but got {count}.")
    numbers = statistics.detach().double().cpu()
    if null != "student" and not bool((numbers > 0).all()):
        raise ValueError(f"Expected positive statistics for a {null} null, but got {numbers}.")
    if null == "log_student":
        numbers = numbers.log()
    largest = int(numbers.argmax())
    rest = torch.cat([numbers[:largest], numbers[largest + 1 :]])
    top, mean = float(numbers[largest]), float(rest.mean())
    least = (_LEAST_SPREAD * (1.0 if null == "log_student" else abs(mean))) ** 2 + 1e-24
    variance = max(float(rest.var()), least)
    if null == "gamma":
        tail = float(stats.gamma.sf(top, mean**2 / variance, scale=variance / mean))
    else:
        spread = math.sqrt(variance * (1 + 1 / len(rest)))
        tail = float(stats.t.sf((top - mean) / spread, len(rest) - 1))
    # 1 - (1 - tail) ** count, exact also for a small tail
    return -math.expm1(count * math.log1p(-min(tail, 1 - 1e-16)))
