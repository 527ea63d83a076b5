"""The decoupling-based defense: its losses against loops, its labels on rows that are known."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from fst_lightning.defenses import DecouplingDefense
from fst_lightning.defenses.common.snapshot import snapshot
from fst_lightning.defenses.dbd import contrastive_loss, sharpen, symmetric_cross_entropy
from tests.defenses.delivered import CLASSES, delivered, trained


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_contrastive_loss_is_a_double_loop() -> None:
    found = torch.randn(8, 5, generator=seeded())
    total = 0.0
    for i in range(8):
        mate = (i + 4) % 8
        alike = [
            float(functional.cosine_similarity(found[i], found[k], dim=0)) / 0.3 for k in range(8)
        ]
        below = sum(math.exp(alike[k]) for k in range(8) if k != i)
        total -= math.log(math.exp(alike[mate]) / below)
    assert float(contrastive_loss(found, 0.3)) == pytest.approx(total / 8, rel=1e-5)


def test_the_symmetric_cross_entropy_is_both_sums() -> None:
    logits, labels = torch.randn(6, 4, generator=seeded()), torch.arange(6) % 4
    chances = logits.softmax(1)
    for row, label in enumerate(labels.tolist()):
        target = [1.0 if k == label else 1e-4 for k in range(4)]
        reverse = -sum(float(chances[row, k]) * math.log(target[k]) for k in range(4))
        expected = -0.1 * math.log(float(chances[row, label])) + reverse
        assert float(symmetric_cross_entropy(logits, labels)[row]) == pytest.approx(
            expected, rel=1e-5
        )


def test_sharpening_keeps_a_distribution_and_its_order() -> None:
    chances = torch.tensor([[0.5, 0.3, 0.2]])
    sharp = sharpen(chances, 0.5)
    assert sharp.sum() == pytest.approx(1)
    assert sharp[0].tolist() == pytest.approx([0.25 / 0.38, 0.09 / 0.38, 0.04 / 0.38])


def small(**arguments: Any) -> DecouplingDefense:
    budget = {"pretrain_epochs": 2, "head_epochs": 2, "semi_epochs": 1, "batch_size": 16}
    return DecouplingDefense(**{**budget, **arguments})


def test_the_rows_of_least_loss_are_believed() -> None:
    data, _ = delivered()
    defense = small(credible=0.7)
    found = defense.suspects(trained(data, 1), data, seeded())
    assert int((~found).sum()) == 63
    assert defense.losses[~found].max() <= defense.losses[found].min()


def test_labels_do_not_shape_the_features() -> None:
    """Other labels give the same features, but for the head."""
    data, _ = delivered()
    net = trained(data, 1)
    first, second = small(head_epochs=1), small(head_epochs=1)
    first.suspects(net, data, seeded())
    data.labels = (data.labels + 1) % CLASSES
    second.suspects(net, data, seeded())
    head = sum(p.numel() for p in net[-1].parameters())
    same = (first.pretrained == second.pretrained).sum()
    assert len(first.pretrained) - int(same) in range(1, head + 1)


def test_false_labels_do_not_fit_the_features() -> None:
    """Rows with a label that does not belong to their image lose against the others."""
    data, _ = delivered(poisoned=0)
    false = torch.arange(90) % 10 == 0
    data.labels = torch.where(false, (data.labels + 1) % CLASSES, data.labels)
    defense = small(pretrain_epochs=10, head_epochs=30, credible=0.8, lr=5e-3)
    found = defense.suspects(trained(data, 1), data, seeded())
    assert float(found[false].float().mean()) > 0.7


def test_training_starts_from_the_features_and_never_sees_a_suspected_label() -> None:
    data, _ = delivered()
    net = trained(data, 1)
    defense = small()
    found = defense.suspects(net, data, seeded())

    def untrained(*_: Any) -> nn.Module:
        raise AssertionError("it has a training of its own")

    made = defense.retrain(lambda: trained(data, 0), data, found, seeded(), untrained)
    assert made is not None
    data.labels = torch.where(found, (data.labels + 1) % CLASSES, data.labels)
    again = defense.retrain(lambda: trained(data, 0), data, found, seeded(), untrained)
    assert again is not None
    assert torch.equal(snapshot(made), snapshot(again))
    assert not torch.equal(snapshot(made), defense.pretrained)


def test_it_learns_with_few_labels() -> None:
    data, _ = delivered(poisoned=0)
    defense = small(pretrain_epochs=5, head_epochs=20, semi_epochs=20, credible=0.8, lr=5e-3)
    found = defense.suspects(trained(data, 1), data, seeded())
    made = defense.retrain(lambda: trained(data, 0), data, found, seeded(), lambda net, _: net)
    assert made is not None
    (images, labels), *_ = data.batches(90)
    assert float((made.eval()(images).argmax(1) == labels).float().mean()) > 0.9


@pytest.mark.parametrize(
    "arguments",
    [
        {"pretrain_epochs": 0},
        {"pretrain_batch_size": 1},
        {"temperature": 0},
        {"head_epochs": 0},
        {"credible": 0},
        {"credible": 1},
        {"semi_epochs": 0},
        {"batch_size": 1},
        {"lr": 0},
        {"unlabeled_weight": -1},
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"Expected `{next(iter(arguments))}`"):
        DecouplingDefense(**arguments)
