"""Triggers that are planted where anybody can see them are found."""

import torch
from torch import Tensor, nn

from fst_lightning.defenses import CleanData, NeuralCleanse, anomaly_index, invert_triggers
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


def test_a_flagged_class_is_unlearnt_with_its_trigger_on_a_fifth_of_a_batch() -> None:
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
