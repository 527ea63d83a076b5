"""The images that a defense is given."""

import pytest
import torch
from torch import Tensor

from fst_lightning.defenses.common.clean_data import CleanData, PoisonedData, held_out_rows
from tests import tiny

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.5)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_hand(images: Tensor) -> Tensor:
    channels = [(images[:, c].double() / 255 - MEAN[c]) / STD[c] for c in range(3)]
    return torch.stack(channels, dim=1).float()


def test_batches_are_normalized_and_in_order() -> None:
    rows = tiny.rows(10)
    clean = CleanData(rows.images, rows.labels, mean=MEAN, std=STD)
    batches = list(clean.batches(4))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    images = torch.cat([images for images, _ in batches])
    assert images.dtype == torch.float32
    assert torch.allclose(images, by_hand(rows.images), atol=1e-6)
    assert torch.equal(torch.cat([labels for _, labels in batches]), rows.labels)
    assert (clean.num_images, len(clean)) == (10, 10)


def test_floats_without_statistics_come_as_they_are() -> None:
    images = torch.randn(5, 3, 4, 4, generator=seeded())
    clean = CleanData(images, torch.arange(5))
    ((seen, _),) = clean.batches()
    assert torch.equal(seen, images)
    assert torch.equal(clean.pixels(images), images)
    assert torch.equal(clean.unit, torch.ones(1, 3, 1, 1))
    halves = CleanData((images * 255).clamp(0, 255).to(torch.uint8), torch.arange(5))
    ((seen, _),) = halves.batches()
    assert float(seen.max()) <= 1


def test_a_shuffled_pass_shows_each_image_once_by_its_generator() -> None:
    images = torch.arange(20.0).reshape(20, 1, 1, 1)
    clean = CleanData(images, torch.arange(20))

    def order(seed: int) -> list[int]:
        batches = list(clean.batches(8, seeded(seed)))
        for shown, labels in batches:
            assert torch.equal(shown.flatten().long(), labels)
        return torch.cat([labels for _, labels in batches]).tolist()

    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert sorted(order(1)) == list(range(20))
    assert order(1) == order(1) != order(2)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("count", "shown"), [(9, 8), (1, 1), (10, 10), (17, 16)])
def test_a_shuffled_pass_leaves_no_batch_of_one(count: int, shown: int) -> None:
    clean = CleanData(torch.rand(count, 3, 2, 2), torch.arange(count))
    assert sum(len(labels) for _, labels in clean.batches(8, seeded())) == shown
    assert sum(len(labels) for _, labels in clean.batches(8)) == count


def test_a_step_of_one_unit_is_a_step_of_one_in_pixels() -> None:
    rows = tiny.rows(4)
    clean = CleanData(rows.images, rows.labels, mean=MEAN, std=STD)
    images = clean.normalize(rows.images)
    assert torch.allclose(clean.pixels(images), rows.images / 255, atol=1e-6)
    moved = clean.pixels(images + 0.1 * clean.unit)
    assert torch.allclose(moved - rows.images / 255, torch.tensor(0.1), atol=1e-6)
    assert clean.unit.flatten().tolist() == pytest.approx([5, 4, 2])


def test_splitting_takes_every_image_once() -> None:
    rows = tiny.rows(30)
    delivered = PoisonedData(rows.images, rows.labels)
    clean = CleanData(rows.images, torch.arange(30), mean=MEAN, std=STD, poisoned=delivered)
    parts = clean.split(0.2, seeded())
    assert parts.held_out is not None
    assert (parts.num_images, parts.held_out.num_images) == (24, 6)
    together = torch.cat([parts.labels, parts.held_out.labels])
    assert sorted(together.tolist()) == list(range(30))
    assert torch.equal(parts.held_out.images, rows.images[parts.held_out.labels])
    assert torch.equal(parts.held_out.unit, clean.unit)
    assert parts.poisoned is delivered
    assert clean.split(0.0, seeded()) is clean


def test_at_least_one_is_held_out_and_one_is_kept() -> None:
    held, kept = held_out_rows(3, 0.01, seeded())
    assert (len(held), len(kept)) == (1, 2)
    with pytest.raises(ValueError, match=r"hold out a share of 0\.9, but got 2"):
        held_out_rows(2, 0.9, seeded())


def test_everything_moves_along() -> None:
    rows = tiny.rows(6)
    clean = CleanData(
        rows.images,
        rows.labels,
        CleanData(rows.images, rows.labels, mean=MEAN, std=STD),
        MEAN,
        STD,
        PoisonedData(rows.images, rows.labels, MEAN, STD),
    )
    moved = clean.to("meta", torch.bfloat16)
    assert moved.held_out is not None
    assert moved.poisoned is not None
    for part in (moved, moved.held_out, moved.poisoned):
        assert (part.device.type, part.labels.device.type, part.unit.device.type) == ("meta",) * 3
        assert part.dtype == part.unit.dtype == torch.bfloat16
    assert clean.device.type == "cpu"
    ((images, _),) = clean.to("cpu", torch.float64).batches()
    assert images.dtype == torch.float64


def test_gathers_a_loader() -> None:
    rows = tiny.rows(10)
    clean = CleanData.gather(tiny.Batches(rows, 4, seed=1))
    order = torch.randperm(10, generator=seeded(1))
    assert torch.equal(clean.images, rows.images[order])
    assert torch.equal(clean.labels, rows.labels[order])
    with pytest.raises(ValueError, match="no batch"):
        CleanData.gather([])


def test_what_does_not_fit_together_is_refused() -> None:
    with pytest.raises(ValueError, match="3 images and 2 labels"):
        CleanData(torch.rand(3, 3, 2, 2), torch.arange(2))
    with pytest.raises(ValueError, match="both or neither"):
        CleanData(torch.rand(2, 3, 2, 2), torch.arange(2), mean=MEAN)
