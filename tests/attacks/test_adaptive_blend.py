import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fst_lightning.attacks import AdaptiveBlend, Blended
from tests import tiny

CIFAR_LABELS = torch.arange(50_000) % 10


def prepared(attack: AdaptiveBlend, images: Tensor) -> AdaptiveBlend:
    attack.prepare(images, tiny.labels(len(images)), tiny.NUM_CLASSES, seed=0)
    return attack


def craft(attack: AdaptiveBlend, images: Tensor, rows: Tensor, seed: int = 0) -> Tensor:
    return attack.craft(images, tiny.labels(len(images)), rows, cover=False, seed=seed)


def test_as_many_rows_as_published_and_no_row_is_both() -> None:
    plan = AdaptiveBlend().plan(CIFAR_LABELS, 10, seed=0)
    assert plan.num_poisoned == 150  # 0.003 of 50,000
    assert int(plan.cover.sum()) == 150
    assert not bool((plan.poisoned & plan.cover).any())
    assert not torch.equal(CIFAR_LABELS[plan.poisoned], CIFAR_LABELS[plan.cover])


@pytest.mark.parametrize("size", [8, 32, 64])
def test_eight_of_sixteen_cells_are_blended(size: int) -> None:
    images = tiny.images(6, size=size, seed=9)
    attack = prepared(AdaptiveBlend(), images)
    crafted = craft(attack, images, torch.arange(6))
    pattern, side = attack.pattern.double().numpy()[0], size // 4
    for image, result in zip(images.double().numpy(), crafted.numpy(), strict=True):
        blended = np.round(255 * (0.85 * image / 255 + 0.15 * pattern))
        changed = 0
        for row, column in itertools.product(range(4), range(4)):
            cell = (
                slice(None),
                slice(row * side, (row + 1) * side),
                slice(column * side, (column + 1) * side),
            )
            if np.array_equal(result[cell], image[cell]):
                continue
            changed += 1
            assert np.abs(result[cell] - blended[cell]).max() <= 1
        assert changed == 8


def test_cells_of_images_that_they_do_not_divide() -> None:
    images = torch.zeros(1, 3, 6, 5, dtype=torch.uint8)
    attack = prepared(AdaptiveBlend(train_alpha=1.0, pattern_seed=1), images)
    attack.pattern.fill_(1)
    shown = craft(attack, images, torch.tensor([7]))[0, 0] == 255
    mask = attack.cell_masks(torch.tensor([7]), seed=0).reshape(4, 4)
    for row, column in itertools.product(range(6), range(5)):
        assert bool(shown[row, column]) == bool(mask[row * 4 // 6, column * 4 // 5])


def test_a_row_has_a_draw_of_its_own_and_keeps_it() -> None:
    images = tiny.images(40, size=8, seed=9)
    attack = prepared(AdaptiveBlend(), images)
    rows = torch.arange(100, 140)
    masks = attack.cell_masks(rows, seed=0)
    assert len({tuple(mask.tolist()) for mask in masks}) > 35
    # Every cell is shown about every second time: 20 of 40, standard error 3.2.
    assert bool(((masks.sum(dim=0) - 20).abs() < 13).all())
    crafted = craft(attack, images, rows)
    torch.manual_seed(5)
    assert torch.equal(craft(attack, images[30:31], rows[30:31]), crafted[30:31])
    assert torch.equal(attack.craft(images, tiny.labels(40), rows, cover=True, seed=0), crafted)
    assert not torch.equal(craft(attack, images, rows, seed=1), crafted)


def test_the_whole_pattern_at_test_and_crafted_images_as_they_are() -> None:
    images = tiny.images(4, size=12, seed=9)
    attack = prepared(AdaptiveBlend(), images)
    whole = Blended(0.2)
    whole.prepare(images, tiny.labels(4), tiny.NUM_CLASSES, seed=0)
    unit = images / 255
    assert torch.equal(attack(unit), whole(unit))
    assert torch.equal(attack.poison(unit), unit)
    assert torch.equal(attack.cover(unit), unit)


def test_other_shares_of_other_cells() -> None:
    attack = AdaptiveBlend(cells=3, mask_rate=0.25)
    assert attack.cell_masks(torch.arange(4), seed=0).sum(dim=1).tolist() == [7.0] * 4
    images = tiny.images(2, size=32, seed=9)
    opaque = AdaptiveBlend(train_alpha=1.0, mask_rate=0.0)
    assert torch.equal(
        craft(opaque, images, torch.arange(2)),
        (255 * opaque.pattern).round().to(torch.uint8).expand_as(images),
    )


def test_refuses() -> None:
    invalid: dict[str, Any]
    for name in ("train_alpha", "test_alpha", "mask_rate", "cover_ratio"):
        invalid = {name: 1.5}
        with pytest.raises(ValueError, match=rf"`{name}` to be a number in \[0, 1\]"):
            AdaptiveBlend(**invalid)
    with pytest.raises(ValueError, match="`cells` to be a whole number of 1 or more, but got 0"):
        AdaptiveBlend(cells=0)
    for cells, mask_rate in ((8, 1.0), (1, 0.6)):
        with pytest.raises(ValueError, match=f"`mask_rate` to leave at least one of {cells} x"):
            AdaptiveBlend(cells=cells, mask_rate=mask_rate)
    with pytest.raises(ValueError, match=r"cover_ratio.*at most the 20 training images"):
        AdaptiveBlend(poison_ratio=0.5, cover_ratio=0.6).plan(torch.arange(40) % 4, 4, seed=0)
