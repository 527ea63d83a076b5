"""Triggers that are planted where anybody can see them are found."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fst_lightning.defenses import CleanData, NeuralCleanse, anomaly_index, invert_triggers
from fst_lightning.defenses.common.patch_inversion import smallest
from tests.defenses.drive import drive

CLASSES, SIZE, TARGET = 6, 6, 2


class Shortcut(nn.Module):
    """Tells classes by the brightness of one row each; two bright pixels in a corner win."""

    def __init__(self, planted: bool) -> None:
        super().__init__()
        self.planted = planted
        self.scale = nn.Parameter(torch.tensor(8.0))

    def forward(self, images: Tensor) -> Tensor:
        logits = self.scale * images.mean(dim=(1, 3))
        contrast = images[:, :, -1, -2:].mean(dim=(1, 2)) - images[:, :, -1, :-2].mean(dim=(1, 2))
        bonus = 60 * torch.relu(contrast - 0.15) * self.planted
        return logits + bonus[:, None] * nn.functional.one_hot(torch.tensor(TARGET), CLASSES)


def clean_images() -> CleanData:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(48) % CLASSES
    images = 0.3 * torch.rand(48, 3, SIZE, SIZE, generator=generator)
    images[torch.arange(48), :, labels] += 0.5
    return CleanData(images, labels, mean=[0.0] * 3, std=[1.0] * 3)


def test_a_planted_trigger_has_the_smallest_mask_and_works() -> None:
    found = invert_triggers(
        Shortcut(planted=True), clean_images(), torch.Generator().manual_seed(0), rounds=30, lr=0.3
    )
    assert int(found.norms.argmin()) == TARGET
    assert int(found.index.argmax()) == TARGET
    assert TARGET in found.flagged(threshold=0.5).tolist()
    mask, pattern = found.masks[TARGET], found.patterns[TARGET]
    stamped = (1 - mask) * clean_images().images + mask * pattern
    hits = Shortcut(planted=True)(stamped).argmax(dim=1) == TARGET
    assert float(hits.float().mean()) > 0.9
    assert float(found.rates[TARGET]) > 0.9


def test_of_several_searches_the_smallest_trigger_of_a_class_counts() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(4, 5, 1, 2, 2, generator=generator)
    patterns = torch.rand(4, 5, 3, 2, 2, generator=generator)
    rates = torch.rand(4, 5, generator=generator)
    sizes = masks.sum((2, 3, 4)).masked_fill(rates < 0.5, torch.inf)
    sizes[:, 1] = torch.inf
    found = smallest(masks, patterns, rates, sizes)
    for label in range(5):
        best, size = 0, float("inf")
        for start in range(4):
            works = float(rates[start, label])
            if float(sizes[start, label]) < size:
                best, size = start, float(sizes[start, label])
            elif size == float("inf") and works > float(rates[best, label]):
                best = start
        assert torch.equal(found.masks[label], masks[best, label])
        assert torch.equal(found.patterns[label], patterns[best, label])
        assert found.rates[label] == rates[best, label]


def test_more_searches_find_triggers_that_are_no_larger() -> None:
    options: dict[str, Any] = {"rounds": 6, "steps": 5, "lr": 0.3, "success": 0.6}
    one, three = (
        invert_triggers(
            Shortcut(planted=True),
            clean_images(),
            torch.Generator().manual_seed(3),
            restarts=restarts,
            **options,
        )
        for restarts in (1, 3)
    )
    good = one.rates >= 0.6
    assert bool(good.any())
    assert bool((three.norms <= one.norms)[good].all())
    assert bool((three.norms < one.norms).any())


def test_what_came_closest_is_named() -> None:
    defense = NeuralCleanse(threshold=2)
    assert defense.shortfall() is None  # nothing was searched yet
    norms = torch.tensor([10.0, 11.0, 12.0, 8.9, 8.0])
    defense.masks = (norms / 16)[:, None, None, None].expand(-1, 1, 4, 4)
    defense.patterns = torch.zeros(5, 3, 4, 4)
    defense.rates = torch.ones(5)
    # median 10, deviations 0, 1, 2, 1.1, 2: median 1.1
    index = 2 / (1.4826 * 1.1)
    assert defense.flagged.tolist() == []
    assert defense.shortfall() == "No class was suspected"
    summary = defense.findings()["summary"]
    assert f"Class 4 came closest, with an anomaly index of {index:.3f}" in summary
    assert "asks for more than 2." in summary
    assert "8.0 pixels, the median class 10.0" in summary
    defense.rates[4] = 0.5  # a trigger that does not work is none
    assert "Class 3 came closest" in defense.findings()["summary"]
    defense.rates[:] = 0
    assert "No recovered trigger works" in defense.findings()["summary"]
    defense.rates[:] = 1
    defense.threshold = 1
    assert defense.shortfall() is None
    assert defense.findings()["summary"] == (
        f"Suspected class 4 (anomaly index {index:.2f}), with a threshold of 1; class 3 came next "
        f"with {1.1 / (1.4826 * 1.1):.2f}."
    )


@pytest.mark.parametrize("norms", [(1.0, 100.0), (5.0, 5.5), (30.0, 2.0)])
def test_of_two_classes_none_stands_out_and_the_findings_say_why(
    norms: tuple[float, float],
) -> None:
    assert float(anomaly_index(torch.tensor(norms)).max()) == pytest.approx(1 / 1.4826, abs=1e-4)
    defense = NeuralCleanse()
    defense.masks = (torch.tensor(norms) / 100)[:, None, None, None].expand(-1, 1, 10, 10)
    defense.patterns, defense.rates = torch.zeros(2, 3, 10, 10), torch.ones(2)
    assert defense.shortfall() == "No class was suspected"
    assert "Of two classes the index is at most 0.67" in defense.findings()["summary"]
    defense.threshold = 0.6
    assert defense.flagged.tolist() == [int(torch.tensor(norms).argmin())]


def test_classes_can_be_searched_a_few_at_a_time_and_the_network_stays() -> None:
    net = Shortcut(planted=True).train()
    kept = {name: value.clone() for name, value in net.state_dict().items()}
    found = invert_triggers(
        net, clean_images(), torch.Generator().manual_seed(0), rounds=2, classes_at_once=4
    )
    assert found.masks.shape == (CLASSES, 1, SIZE, SIZE)
    assert found.patterns.shape == (CLASSES, 3, SIZE, SIZE)
    assert net.training
    assert all(torch.equal(value, kept[name]) for name, value in net.state_dict().items())


def test_the_anomaly_index_by_hand() -> None:
    norms = torch.tensor([8.0, 10.0, 12.0, 9.0, 1.0])
    # median 9; deviations 1, 1, 3, 0, 8: median 1
    expected = (9 - norms) / 1.4826
    assert torch.allclose(anomaly_index(norms), expected)
    flagged = anomaly_index(torch.tensor([100.0] * 9 + [10.0])) > 2
    assert flagged.nonzero().flatten().tolist() == [9]
    assert not bool((anomaly_index(torch.full((5,), 3.0)) > 2).any())


def test_nothing_flagged_leaves_the_network_as_it_is() -> None:
    net = Shortcut(planted=False)
    defense = NeuralCleanse(rounds=3, steps=3, threshold=1e9)
    before = net.scale.detach().clone()
    defense.prepare(net, torch.Generator().manual_seed(0))
    defense.study(net, clean_images(), torch.Generator().manual_seed(0))
    assert defense.done
    assert defense.findings()["flagged"] == []
    assert torch.equal(net.scale, before)


def test_a_flagged_class_is_unlearned_with_its_trigger_on_a_fifth_of_a_batch() -> None:
    net, clean = Shortcut(planted=True), clean_images()
    defense = NeuralCleanse(rounds=30, lr=0.3, stamp_ratio=0.25, threshold=0.5)
    defense.prepare(net, torch.Generator().manual_seed(0))
    defense.study(net, clean, torch.Generator().manual_seed(0))
    assert not defense.done
    images = clean.images[:8]
    stamped = defense.stamp(images)
    changed = (stamped != images).flatten(1).any(dim=1)
    assert changed.tolist() == [True] * 2 + [False] * 6
    mask, pattern = defense.masks[TARGET], defense.patterns[TARGET]
    expected = (1 - mask) * images[0] + mask * pattern  # white is 1 for this network
    if defense.flagged.tolist() == [TARGET]:
        assert torch.allclose(stamped[0], expected, atol=1e-6)
    losses = drive(NeuralCleanse(rounds=5, steps=5), net, clean, epochs=1, lr=1e-3)
    assert all(loss == loss for loss in losses)
