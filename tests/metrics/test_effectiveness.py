from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fst_lightning.metrics import defense_effectiveness_rating

rates = st.integers(0, 1000)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((0.9182, 0.9379), (0.9221, 0.0163), 0.9608),
        ((0.9, 0.8), (0.9, 0.8), 0.5),
        ((0.7, 0.0), (0.5, 0.0), 0.4),
        ((0.5, 0.2), (0.9, 0.6), 0.5),
        ((1.0, 1.0), (1.0, 0.0), 1.0),
        ((1.0, 0.0), (0.0, 1.0), 0.0),
    ],
)
def test_known_values(
    before: tuple[float, float], after: tuple[float, float], expected: float
) -> None:
    assert defense_effectiveness_rating(*before, *after) == pytest.approx(expected, abs=5e-5)


@settings(deadline=None)
@given(rates, rates, rates, rates)
def test_agrees_with_exact_arithmetic(ca: int, asr: int, ca_after: int, asr_after: int) -> None:
    gain, cost = max(0, asr - asr_after), max(0, ca - ca_after)
    exact = Fraction(gain - cost + 1000, 2000)
    got = defense_effectiveness_rating(ca / 1000, asr / 1000, ca_after / 1000, asr_after / 1000)
    assert got == pytest.approx(float(exact), abs=1e-12)
    assert 0 <= got <= 1


@pytest.mark.parametrize("bad", [-0.01, 1.01, 91.8, float("nan"), float("inf")])
@pytest.mark.parametrize("place", range(4))
def test_refuses_percent_and_nan(bad: float, place: int) -> None:
    values = [0.5] * 4
    values[place] = bad
    name = ("ca_before", "asr_before", "ca_after", "asr_after")[place]
    with pytest.raises(ValueError, match=rf"`{name}` to be a number in \[0, 1\], but got"):
        defense_effectiveness_rating(*values)
