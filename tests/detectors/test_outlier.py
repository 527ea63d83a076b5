"""The p-value of an outlier, against scipy and against simulated networks without a backdoor."""

import math

import pytest
import torch
from scipy import stats

from fst_lightning.detectors import outlier_p_value

NUMBERS = torch.tensor([60.0, 174, 90, 110, 85, 132, 70, 99, 120, 279])


def test_gamma_is_scipys() -> None:
    rest = NUMBERS[:-1].double()
    mean, variance = float(rest.mean()), float(rest.var())
    null = stats.gamma(mean**2 / variance, scale=variance / mean)
    expected = 1 - null.cdf(279) ** 10
    assert outlier_p_value(NUMBERS, "gamma") == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("null", ["student", "log_student"])
def test_student_is_scipys(null: str) -> None:
    numbers = NUMBERS.double() if null == "student" else NUMBERS.double().log()
    rest = numbers[:-1]
    spread = float(rest.std()) * math.sqrt(1 + 1 / 9)
    tail = stats.t.cdf(float((numbers[-1] - rest.mean()) / spread), 8)
    found = outlier_p_value(NUMBERS, null)  # type: ignore[arg-type]
    assert found == pytest.approx(1 - tail**10, rel=1e-9)


@pytest.mark.parametrize("null", ["gamma", "student", "log_student"])
def test_the_order_of_the_classes_does_not_matter(null: str) -> None:
    expected = outlier_p_value(NUMBERS, null)  # type: ignore[arg-type]
    turned = outlier_p_value(NUMBERS.roll(3), null)  # type: ignore[arg-type]
    assert turned == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("null", ["gamma", "student", "log_student"])
def test_a_larger_outlier_is_less_likely(null: str) -> None:
    numbers = NUMBERS.clone()
    found = []
    for value in (180, 250, 400, 1000):
        numbers[-1] = value
        found.append(outlier_p_value(numbers, null))  # type: ignore[arg-type]
    assert found == sorted(found, reverse=True)
    assert all(0 < value <= 1 for value in found)


def test_numbers_that_are_all_but_equal_have_no_outlier() -> None:
    numbers = torch.full((10,), 5.0, dtype=torch.float64)
    numbers[3] += 1e-6
    assert outlier_p_value(numbers, "student") > 0.5


def test_false_alarms_on_normal_numbers() -> None:
    """Student's null leaves the largest of ten normal numbers alone most of the time.

    The largest one is left out of the fit, so that the rest spreads less than all: a p-value of
    5 % is crossed more often than in 5 % of the cases, and not wildly more often.
    """
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(2000, 10, generator=generator, dtype=torch.float64)
    alarms = sum(outlier_p_value(row, "student") <= 0.05 for row in draws) / len(draws)
    assert 0.02 < alarms < 0.25


def test_refusals() -> None:
    with pytest.raises(ValueError, match="3 statistics or more, but got 2"):
        outlier_p_value(torch.tensor([1.0, 2.0]), "student")
    with pytest.raises(ValueError, match="positive statistics"):
        outlier_p_value(torch.tensor([1.0, 0.0, 2.0, 3.0]), "gamma")
