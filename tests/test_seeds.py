from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from fst_lightning.attacks import BadNets
from fst_lightning.data import clean_rows
from fst_lightning.data.rows import EpochShuffle
from fst_lightning.seeds import derived_seed


@given(seed=st.integers(0, 2**32 - 1), purpose=st.text(max_size=10), number=st.integers(0, 1000))
def test_fits_a_generator_and_is_repeatable(seed: int, purpose: str, number: int) -> None:
    drawn = derived_seed(seed, purpose, number)
    assert drawn == derived_seed(seed, purpose, number)
    torch.Generator().manual_seed(drawn)


@given(seed=st.integers(0, 2**32 - 1))
def test_streams_differ(seed: int) -> None:
    streams = {derived_seed(seed, name, k) for name in ("order", "epoch") for k in range(20)}
    assert len(streams | {derived_seed(seed + 1, "order", 0)}) == 41


@given(seed=st.integers(0, 200), epoch=st.integers(0, 3))
def test_poisoned_rows_are_spread_over_an_epoch(seed: int, epoch: int) -> None:
    """Of 2,000 rows 200 are poisoned: the first 200 of an epoch hold about 20 of them."""
    labels = torch.arange(2000) % 10
    poisoned = BadNets(poison_ratio=0.1).plan(labels, 10, seed).poisoned
    held = clean_rows(labels, 0.1, seed)
    order = EpochShuffle(2000, seed)
    order.set_epoch(epoch)
    first = torch.tensor(list(order)[:200])
    # Hypergeometric: mean 20, standard deviation 4.0; 48 is 7 standard deviations away.
    assert 0 < int(poisoned[first].sum()) < 48
    assert 0 < int(held[first].sum()) < 48
    assert 0 < int((held & poisoned).sum()) < 48
