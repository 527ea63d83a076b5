import re
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fst_lightning.attacks import BadNets, PoisonPlan, draw_rows
from tests import tiny


def nearest(ratio: float, total: int) -> set[int]:
    """The whole numbers nearest to ratio x total: one, or two on a tie."""
    product = Fraction(ratio) * total
    below = product.numerator // product.denominator
    distances = {below: product - below, below + 1: below + 1 - product}
    # A float product may fall on a tie that the exact one only comes close to.
    least = min(distances.values()) + Fraction(1, 10**9)
    return {number for number, distance in distances.items() if distance <= least}


@settings(deadline=None, max_examples=100)
@given(
    total=st.integers(1, 3000),
    ratio=st.floats(0.001, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_exact_number_same_seed_same_rows(total: int, ratio: float, seed: int) -> None:
    labels = tiny.labels(total)
    attack = BadNets(poison_ratio=ratio)
    if nearest(ratio, total) == {0}:
        with pytest.raises(ValueError, match="rounds to none"):
            attack.plan(labels, tiny.NUM_CLASSES, seed)
        return
    if ratio * total == 0.5:
        return
    plan = attack.plan(labels, tiny.NUM_CLASSES, seed)
    assert plan.num_poisoned in nearest(ratio, total)
    assert plan.poisoned.shape == (total,)
    assert plan.poisoned.dtype == torch.bool
    assert not bool(plan.cover.any())
    torch.manual_seed(99)  # the global generator takes no part
    again = BadNets(poison_ratio=ratio).plan(labels, tiny.NUM_CLASSES, seed)
    assert torch.equal(plan.poisoned, again.poisoned)


@pytest.mark.parametrize(
    ("total", "ratio", "count"),
    [
        (50_000, 0.001, 50),
        (50_000, 0.005, 250),
        (50_000, 0.01, 500),
        (50_000, 0.05, 2500),
        (50_000, 0.1, 5000),
        (50_000, 0.2, 10_000),
        (1437, 0.05, 72),
        (1437, 0.001, 1),
        (39_209, 0.1, 3921),
        (10, 1.0, 10),
    ],
)
def test_published_ratios(total: int, ratio: float, count: int) -> None:
    plan = BadNets(poison_ratio=ratio).plan(tiny.labels(total), tiny.NUM_CLASSES, seed=0)
    assert plan.num_poisoned == count


def test_other_seeds_other_rows() -> None:
    labels = tiny.labels(500)
    plans = [BadNets(poison_ratio=0.1).plan(labels, 4, seed).poisoned for seed in range(20)]
    assert len({tuple(plan.tolist()) for plan in plans}) == 20
    # Independent draws of 50 out of 500 share 5 rows on average.
    shared = [int((a & b).sum()) for i, a in enumerate(plans) for b in plans[:i]]
    assert sum(shared) / len(shared) == pytest.approx(5, abs=0.6)


def test_every_row_is_as_likely_as_any_other() -> None:
    labels = torch.arange(60) % 3
    hits = torch.zeros(60)
    for seed in range(2000):
        hits += BadNets(poison_ratio=0.2, target_label=1).plan(labels, 3, seed).poisoned
    # Binomial(2000, 0.2): mean 400, standard deviation 17.9; 60 rows stay within 4.5 of them.
    assert float((hits - 400).abs().max()) < 81
    by_class = torch.stack([hits[labels == label].sum() for label in range(3)])
    assert by_class.tolist() == pytest.approx([8000] * 3, rel=0.02)


@pytest.mark.parametrize(("total", "ratio"), [(300, 0.001), (1437, 0.0003), (7, 0.05), (1, 0.2)])
def test_a_ratio_that_rounds_to_none_names_one_that_does_not(total: int, ratio: float) -> None:
    labels = tiny.labels(total)
    with pytest.raises(ValueError, match="rounds to none") as failure:
        BadNets(poison_ratio=ratio).plan(labels, tiny.NUM_CLASSES, seed=0)
    found = re.search(r"one image is ([0-9.e-]+)\. ", str(failure.value))
    assert found is not None
    named = float(found[1])
    assert BadNets(poison_ratio=named).plan(labels, 4, seed=0).num_poisoned == 1
    assert f"of {total} training" in str(failure.value)
    assert "attack=none" in str(failure.value)


def test_a_ratio_of_zero_is_no_attack() -> None:
    with pytest.raises(ValueError, match="attack=none"):
        BadNets(poison_ratio=0.0).plan(tiny.labels(100), 4, seed=0)


@pytest.mark.parametrize("target", [4, 10])
def test_a_target_that_does_not_exist(target: int) -> None:
    with pytest.raises(ValueError, match=rf"`attack.target_label` to be in 0\.\.3.*got {target}"):
        BadNets(target_label=target).plan(tiny.labels(100), 4, seed=0)
    attack = BadNets(target_label=target, label_map="all_to_all")
    assert attack.plan(tiny.labels(100), 4, seed=0).num_poisoned == 5


@settings(deadline=None)
@given(
    candidates=st.lists(st.booleans(), min_size=1, max_size=200),
    data=st.data(),
    seed=st.integers(0, 2**63 - 1),
)
def test_draws_among_the_candidates(candidates: list[bool], data: st.DataObject, seed: int) -> None:
    count = data.draw(st.integers(0, sum(candidates)))
    drawn = draw_rows(torch.tensor(candidates), count, seed)
    assert int(drawn.sum()) == count
    assert not bool((drawn & ~torch.tensor(candidates)).any())


def test_too_few_candidates() -> None:
    with pytest.raises(ValueError, match="at most 2 rows to be drawn, but got 3"):
        draw_rows(torch.tensor([True, False, True]), 3, seed=0)


def test_no_row_is_both_poisoned_and_cover() -> None:
    rows = torch.tensor([True, False])
    with pytest.raises(ValueError, match="both poisoned and cover"):
        PoisonPlan(poisoned=rows, cover=rows)
    assert PoisonPlan(poisoned=rows, cover=~rows).num_poisoned == 1
