import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, DistributedSampler

from fst_lightning.data.rows import (
    Chunks,
    EpochShuffle,
    Rows,
    ShuffleShare,
    as_gathered,
    training_loader,
)
from tests import tiny


@settings(deadline=None, max_examples=50)
@given(count=st.integers(1, 30), data=st.data())
def test_a_gathered_batch_is_the_stacked_rows(count: int, data: st.DataObject) -> None:
    rows = Rows(tiny.rows(count, size=4), torch.arange(count) % 3 == 0)
    index = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=40))
    images, labels, poisoned = rows.__getitems__(index)
    one_by_one = [rows[row] for row in index]
    assert torch.equal(images, torch.stack([image for image, _, _ in one_by_one]))
    assert labels.tolist() == [int(label) for _, label, _ in one_by_one]
    assert poisoned.tolist() == [row % 3 == 0 for row in index]
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    assert poisoned.dtype == torch.bool
    assert len(rows) == count


def test_a_loader_takes_gathered_batches() -> None:
    rows = Rows(tiny.rows(10, size=4), torch.zeros(10, dtype=torch.bool))
    batches = list(DataLoader(rows, batch_size=4, collate_fn=as_gathered))
    assert [len(labels) for _, labels, _ in batches] == [4, 4, 2]
    assert torch.equal(torch.cat([images for images, _, _ in batches]), rows.data.images)


def test_rows_can_be_sent_to_workers() -> None:
    rows = Rows(tiny.rows(3), torch.zeros(3, dtype=torch.bool))
    again = pickle.loads(pickle.dumps((rows, as_gathered)))[0]
    assert torch.equal(again[1][0], rows[1][0])


@settings(deadline=None, max_examples=150)
@given(
    count=st.integers(1, 120),
    batch_size=st.integers(1, 130),
    num_processes=st.integers(1, 9),
    triggered=st.booleans(),
)
def test_every_row_is_in_exactly_one_chunk(
    count: int, batch_size: int, num_processes: int, triggered: bool
) -> None:
    data = tiny.rows(count, num_classes=10_000, size=1)
    data.labels.copy_(torch.arange(count))
    chunks = Chunks(data, triggered, batch_size, num_processes)
    assert len(chunks) % num_processes == 0
    batches = [chunks[number] for number in range(len(chunks))]
    assert [label for _, labels, _ in batches for label in labels.tolist()] == list(range(count))
    assert torch.equal(torch.cat([images for images, _, _ in batches]), data.images)
    assert all(poisoned.tolist() == [triggered] * len(labels) for _, labels, poisoned in batches)
    sizes = [len(labels) for _, labels, _ in batches]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    # No more chunks than needed: one less a process would not hold the rows.
    assert len(chunks) == num_processes or (len(chunks) - num_processes) * batch_size < count


@settings(deadline=None, max_examples=50)
@given(count=st.integers(1, 80), batch_size=st.integers(1, 20), num_processes=st.integers(1, 5))
def test_processes_share_the_rows(count: int, batch_size: int, num_processes: int) -> None:
    data = tiny.rows(count, num_classes=10_000, size=1)
    data.labels.copy_(torch.arange(count))
    chunks = Chunks(data, False, batch_size, num_processes)
    seen: list[int] = []
    steps = set()
    for rank in range(num_processes):
        sampler: DistributedSampler[int] = DistributedSampler(
            chunks, num_processes, rank, shuffle=False
        )
        batches = list(DataLoader(chunks, batch_size=None, sampler=sampler))
        steps.add(len(batches))
        seen += [label for _, labels, _ in batches for label in labels.tolist()]
    assert sorted(seen) == list(range(count))
    assert len(steps) == 1


@settings(deadline=None, max_examples=50)
@given(count=st.integers(1, 300), seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 500))
def test_an_order_of_all_rows_by_seed_and_epoch(count: int, seed: int, epoch: int) -> None:
    orders = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        sampler = EpochShuffle(count, seed)
        for earlier in range(3 * (global_seed - 1)):
            sampler.set_epoch(earlier)
            list(sampler)
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        assert len(sampler) == count
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == list(range(count))


@settings(deadline=None, max_examples=50)
@given(
    count=st.integers(1, 100),
    processes=st.integers(1, 5),
    batch_size=st.integers(1, 9),
    epoch=st.integers(0, 9),
)
def test_steps_of_several_processes_are_those_of_one(
    count: int, processes: int, batch_size: int, epoch: int
) -> None:
    """With their batches taken together; what does not divide by their number waits."""
    whole = EpochShuffle(count, 7)
    whole.set_epoch(epoch)
    shares = []
    for rank in range(processes):
        share = ShuffleShare(count, 7, processes, rank)
        share.set_epoch(epoch)
        shares.append(list(share))
        assert len(share) == len(shares[-1])
    assert len({len(share) for share in shares}) == 1
    if count < processes:
        assert len(shares[0]) == 1
        return
    together = [row for rows in zip(*shares, strict=True) for row in rows]
    assert together == list(whole)[: count - count % processes]
    for start in range(0, len(shares[0]), batch_size):
        step = {row for share in shares for row in share[start : start + batch_size]}
        end = start + batch_size
        assert step == set(together[start * processes : end * processes])


@pytest.mark.parametrize(("count", "batch_size", "steps"), [(130, 64, 1), (132, 64, 2), (2, 64, 1)])
def test_no_process_trains_on_a_single_image(count: int, batch_size: int, steps: int) -> None:
    """BatchNorm could not: what is left of a process's share counts, not of all rows."""
    rows = Rows(tiny.rows(count), torch.zeros(count, dtype=torch.bool))
    loader = training_loader(rows, batch_size, ShuffleShare(count, 0, 2, 1))
    assert len(list(loader)) == steps


def test_other_epochs_and_seeds_have_other_orders() -> None:
    orders = set()
    for seed in range(6):
        sampler = EpochShuffle(50, seed)
        for epoch in range(6):
            sampler.set_epoch(epoch)
            orders.add(tuple(sampler))
    assert len(orders) == 36


def test_no_row_prefers_a_place() -> None:
    places = torch.zeros(10, 10)
    sampler = EpochShuffle(10, seed=0)
    for epoch in range(2000):
        sampler.set_epoch(epoch)
        places[torch.arange(10), torch.tensor(list(sampler))] += 1
    # Binomial(2000, 0.1): mean 200, standard deviation 13.4.
    assert float((places - 200).abs().max()) < 5 * 13.5


def test_the_order_takes_nothing_from_the_global_generator() -> None:
    state = torch.get_rng_state()
    list(EpochShuffle(10, seed=0))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_rows_than_processes(count: int) -> None:
    chunks = Chunks(tiny.rows(count), triggered=True, batch_size=500, num_processes=4)
    assert len(chunks) == 4
    assert sum(len(chunks[number][1]) for number in range(4)) == count


def test_crafted_images_take_the_place_of_stored_ones() -> None:
    data = tiny.rows(6, size=2)
    crafted = torch.stack([torch.full((3, 2, 2), v, dtype=torch.uint8) for v in (7, 9)])
    cover = torch.tensor([False, False, False, False, True, False])
    poisoned = torch.tensor([False, True, False, False, False, False])
    rows = Rows(data, poisoned, cover, crafted, torch.tensor([4, 1]))
    stored = data.images.clone()
    images, labels, stamped, covered = rows.__getitems__([1, 0, 4, 5, 1])
    assert torch.equal(images[[0, 4]], crafted[[1, 1]])
    assert torch.equal(images[2], crafted[0])
    assert torch.equal(images[[1, 3]], stored[[0, 5]])
    assert torch.equal(data.images, stored)
    assert labels.tolist() == data.labels[[1, 0, 4, 5, 1]].tolist()
    assert stamped.tolist() == [True, False, False, False, True]
    assert covered.tolist() == [False, False, True, False, False]
