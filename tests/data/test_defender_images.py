"""Which clean images a defender holds."""

import pytest
import torch

from fst_lightning.data import clean_rows, reserve, with_training_images
from tests import tiny


@pytest.mark.parametrize(
    ("sizes", "ratio", "expected"),
    [
        ((50, 30, 20), 0.3, [10, 10, 10]),
        ((90, 6, 4), 0.3, [20, 6, 4]),
        ((10, 0, 10), 0.5, [5, 0, 5]),
        ((4, 4), 1.0, [4, 4]),
    ],
)
def test_a_balanced_draw_evens_out_the_classes(
    sizes: tuple[int, ...], ratio: float, expected: list[int]
) -> None:
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    held = clean_rows(labels, ratio, seed=3, balanced=True)
    assert labels[held].bincount(minlength=len(sizes)).tolist() == expected


def test_a_balanced_draw_is_a_random_one() -> None:
    labels = torch.arange(300) % 3
    draws = [clean_rows(labels, 0.1, seed, balanced=True) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    counts = torch.stack([clean_rows(labels, 0.1, seed, balanced=True) for seed in range(400)]).sum(
        0
    )
    # Each row is drawn with probability 0.1: 40 times, with a standard deviation of 6.
    assert float((counts - 40.0).abs().max()) < 6 * 4.5


def test_one_more_of_some_classes_where_it_does_not_divide() -> None:
    labels = torch.arange(100) % 4
    counts = labels[clean_rows(labels, 0.1, seed=0, balanced=True)].bincount()
    assert sorted(counts.tolist()) == [2, 2, 3, 3]


def test_reserved_rows_leave_the_training_set() -> None:
    source = tiny.source(num_train=20)
    data, rows = source.load(), torch.arange(20) % 4 == 0
    rest, taken = reserve(source, rows)
    assert torch.equal(taken.images, data.train.images[rows])
    assert torch.equal(rest.load().train.images, data.train.images[~rows])
    assert torch.equal(rest.load().train.labels, data.train.labels[~rows])
    assert rest.load().test is data.test
    assert (rest.load().mean, rest.load().std) == (data.mean, data.std)
    assert source.load() is data
    with pytest.raises(ValueError, match="nothing would be left"):
        reserve(source, torch.ones(20, dtype=torch.bool))


def test_other_training_images_leave_the_source_as_it_is() -> None:
    source, images = tiny.source(num_train=20), tiny.rows(5)
    other = with_training_images(source, images)
    assert other.load().train is images
    assert len(source.load().train) == 20
