import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fst_lightning.metrics import rate_difference_interval, wilson_interval

QUANTILES = {0.90: 1.6448536269514722, 0.95: 1.959963984540054, 0.99: 2.5758293035489004}

counted = st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def bisect(function: Callable[[float], float], low: float, high: float) -> float:
    for _ in range(200):
        middle = (low + high) / 2
        if (function(middle) > 0) == (function(high) > 0):
            high = middle
        else:
            low = middle
    return (low + high) / 2


@pytest.mark.parametrize("confidence", sorted(QUANTILES))
@pytest.mark.parametrize(("k", "n"), [(1, 2), (3, 10), (9, 10), (50, 100), (999, 1000), (17, 360)])
def test_ends_solve_the_score_equation(k: int, n: int, confidence: float) -> None:
    rate, z = k / n, QUANTILES[confidence]

    def score(p: float) -> float:
        return (rate - p) ** 2 - z * z * p * (1 - p) / n

    low, high = wilson_interval(k, n, confidence)
    assert low == pytest.approx(bisect(score, rate, 0.0), abs=1e-9)
    assert high == pytest.approx(bisect(score, rate, 1.0), abs=1e-9)


@pytest.mark.parametrize("n", [1, 7, 360, 10_000])
def test_nothing_or_everything_counted(n: int) -> None:
    square = QUANTILES[0.95] ** 2
    none, every = wilson_interval(0, n), wilson_interval(n, n)
    assert none[0] == 0
    assert none[1] == pytest.approx(square / (n + square))
    assert every[0] == pytest.approx(n / (n + square))
    assert every[1] == 1


@settings(deadline=None)
@given(counted, st.floats(0.01, 0.999))
def test_contains_the_rate_inside_the_unit_interval(
    count: tuple[int, int], confidence: float
) -> None:
    k, n = count
    low, high = wilson_interval(k, n, confidence)
    assert 0 <= low <= k / n <= high <= 1


@settings(deadline=None)
@given(counted)
def test_is_symmetric(count: tuple[int, int]) -> None:
    k, n = count
    low, high = wilson_interval(k, n)
    mirrored_low, mirrored_high = wilson_interval(n - k, n)
    assert mirrored_low == pytest.approx(1 - high, abs=1e-12)
    assert mirrored_high == pytest.approx(1 - low, abs=1e-12)


def test_more_rows_and_less_confidence_are_narrower() -> None:
    def width(k: int, n: int, confidence: float = 0.95) -> float:
        low, high = wilson_interval(k, n, confidence)
        return high - low

    assert width(10, 100) > width(100, 1000) > width(1000, 10_000)
    assert width(10, 100, 0.99) > width(10, 100) > width(10, 100, 0.5)
    assert wilson_interval(5, 10, math.nextafter(1.0, 0.0))[0] > 0


@pytest.mark.parametrize(
    ("k", "n", "confidence", "message"),
    [
        (0, 0, 0.95, "`total` to be a number of 1 or more, but got 0"),
        (3, 2, 0.95, r"`successes` to be a number in \[0, 2\], but got 3"),
        (-1, 2, 0.95, "`successes`.*-1"),
        (1, 2, 0.0, r"`confidence` to be a number in \(0, 1\), but got 0.0"),
        (1, 2, 95.0, "`confidence`.*95"),
        (1, 2, math.nan, "`confidence`.*nan"),
    ],
)
def test_refuses_impossible_counts(k: int, n: int, confidence: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wilson_interval(k, n, confidence)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        # Newcombe 1998, table II, method 10.
        ((56, 70), (48, 80), (0.0524, 0.3339)),
        ((9, 10), (3, 10), (0.1705, 0.8090)),
        ((5, 56), (0, 29), (-0.0381, 0.1926)),
        ((10, 10), (0, 10), (0.6075, 1.0)),
    ],
)
def test_a_difference_as_published(
    first: tuple[int, int], second: tuple[int, int], expected: tuple[float, float]
) -> None:
    found = rate_difference_interval(first, second)
    assert found == pytest.approx(expected, abs=1e-4)
    mirrored = rate_difference_interval(second, first)
    assert mirrored == pytest.approx((-expected[1], -expected[0]), abs=1e-4)


def test_a_difference_is_covered_as_often_as_promised() -> None:
    """The exact chance over all pairs of counts, for three pairs of rates."""
    n = 30
    for p, q in ((0.5, 0.5), (0.9, 0.6), (0.2, 0.05)):
        covered = 0.0
        for k in range(n + 1):
            for m in range(n + 1):
                low, high = rate_difference_interval((k, n), (m, n), 0.9)
                if low <= p - q <= high:
                    chance = math.comb(n, k) * p**k * (1 - p) ** (n - k)
                    covered += chance * math.comb(n, m) * q**m * (1 - q) ** (n - m)
        assert 0.87 < covered < 0.96
