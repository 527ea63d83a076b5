"""The interval of a paired drop against likelihoods that are maximized by brute force."""

import math

import numpy as np
import pytest

from fst_lightning.metrics import paired_drop_interval

Z95 = 1.959963984540054


def score_by_search(lost: int, gained: int, total: int, drop: float) -> float:
    """Tango's score with the chance of a gain found on a grid, not by a formula."""
    chances = np.linspace(max(0.0, -drop), (1 - drop) / 2, 200_001)[1:-1]
    rest = 1 - 2 * chances - drop
    with np.errstate(divide="ignore", invalid="ignore"):
        likelihood = (
            lost * np.log(chances + drop)
            + gained * np.log(chances)
            + (total - lost - gained) * np.log(rest)
        )
    gain = chances[np.nanargmax(likelihood)]
    return float((lost - gained - total * drop) / math.sqrt(total * (2 * gain + drop * (1 - drop))))


@pytest.mark.parametrize(
    ("lost", "gained", "total"), [(6, 2, 200), (1, 1, 50), (30, 5, 1000), (2, 9, 120)]
)
def test_the_score_at_the_ends_is_the_quantile(lost: int, gained: int, total: int) -> None:
    low, high = paired_drop_interval(lost, gained, total)
    assert low < (lost - gained) / total < high
    assert score_by_search(lost, gained, total, high) == pytest.approx(-Z95, abs=2e-3)
    assert score_by_search(lost, gained, total, low) == pytest.approx(Z95, abs=2e-3)


@pytest.mark.parametrize("total", [1, 30, 287, 10_000])
def test_where_nothing_changed_it_is_a_closed_form(total: int) -> None:
    end = Z95**2 / (total + Z95**2)
    assert paired_drop_interval(0, 0, total) == pytest.approx((-end, end), abs=1e-9)


def test_at_a_drop_of_zero_it_agrees_with_mcnemar() -> None:
    """McNemar's z of 5 gains and 15 losses is sqrt(5): at its level the interval ends at 0."""
    level = 1 - math.erfc(math.sqrt(5) / math.sqrt(2))
    assert paired_drop_interval(15, 5, 400, level)[0] == pytest.approx(0, abs=1e-9)
    assert paired_drop_interval(5, 15, 400, level)[1] == pytest.approx(0, abs=1e-9)


def test_it_covers_as_often_as_it_says() -> None:
    """Two thousand experiments with a true drop of 2 points."""
    numbers = np.random.default_rng(0)
    draws = numbers.multinomial(500, [0.03, 0.01, 0.96], size=2000)
    ends = np.array([paired_drop_interval(int(b), int(c), 500, 0.9) for b, c, _ in draws])
    assert 0.92 < np.mean(ends[:, 0] <= 0.02) < 0.98
    assert 0.92 < np.mean(ends[:, 1] >= 0.02) < 0.98


@pytest.mark.parametrize(
    ("lost", "gained", "total"), [(5, 0, 5), (0, 5, 5), (0, 0, 1), (50, 50, 100), (0, 100, 100)]
)
def test_it_stays_in_range_and_rises_with_the_losses(lost: int, gained: int, total: int) -> None:
    low, high = paired_drop_interval(lost, gained, total)
    assert -1 <= low <= (lost - gained) / total <= high <= 1
    if lost:
        fewer = paired_drop_interval(lost - 1, gained, total)
        assert fewer[0] < low
        assert fewer[1] < high


@pytest.mark.parametrize("counts", [(-1, 0, 5), (3, 3, 5), (0, 0, 0)])
def test_impossible_counts_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="Expected `lost` and `gained`"):
        paired_drop_interval(*counts)
    with pytest.raises(ValueError, match="confidence"):
        paired_drop_interval(0, 0, 5, confidence=1.0)
