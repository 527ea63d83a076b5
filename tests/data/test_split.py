import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fst_lightning.data.split import stratified_split

COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(lambda counts: sum(counts) > 0)


def labels_of(counts: list[int], seed: int) -> torch.Tensor:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]


@given(COUNTS, st.floats(0.05, 0.95), st.integers(0, 100))
def test_disjoint_complete_and_stratified(counts: list[int], fraction: float, seed: int) -> None:
    labels = labels_of(counts, seed)
    kept, held_out = stratified_split(labels, fraction, seed)
    assert sorted([*kept.tolist(), *held_out.tolist()]) == list(range(len(labels)))
    assert kept.tolist() == sorted(kept.tolist())
    for label, count in enumerate(counts):
        taken = int((labels[held_out] == label).sum())
        assert abs(taken - count * fraction) <= 1 + 1e-6
        if count >= 2:
            assert 1 <= taken <= count - 1
        else:
            assert taken == 0


@given(COUNTS, st.integers(0, 100))
def test_same_seed_same_rows(counts: list[int], seed: int) -> None:
    labels = labels_of(counts, 0)
    first = stratified_split(labels, 0.3, seed)
    second = stratified_split(labels, 0.3, seed)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_another_seed_gives_other_rows() -> None:
    labels = labels_of([50, 50], 0)
    assert not torch.equal(stratified_split(labels, 0.2, 0)[1], stratified_split(labels, 0.2, 1)[1])


@given(st.lists(st.integers(20, 60), min_size=2, max_size=8))
def test_total_is_the_fraction_rounded_up(counts: list[int]) -> None:
    _, held_out = stratified_split(labels_of(counts, 0), 0.25, 0)
    assert len(held_out) == math.ceil(sum(counts) / 4)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_refuses_a_fraction_outside(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"in \(0, 1\)"):
        stratified_split(torch.tensor([0, 1]), fraction, 0)
