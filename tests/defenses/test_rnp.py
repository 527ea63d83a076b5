import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from fst_lightning.defenses import ReconstructiveNeuronPruning, rnp
from fst_lightning.defenses.common.whole_set import accuracy
from tests.defenses import pruning
from tests.defenses.drive import drive


def unlearning(**options: Any) -> ReconstructiveNeuronPruning:
    quick = {"unlearn_epochs": 30, "unlearn_lr": 0.05, "unlearn_batch_size": 8}
    return ReconstructiveNeuronPruning(**(quick | options))


def test_unlearning_stops_once_the_classes_are_forgotten() -> None:
    net, clean = pruning.network(), pruning.clean_data()
    clean.labels = pruning.logits(net, clean).argmax(1)
    assert accuracy(net, clean) == 1
    defense = unlearning(unlearn_accuracy=0.2)
    defense.prepare(net, pruning.seeded())
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    defense.study(net, clean, pruning.seeded())
    assert float(defense.unlearned) <= 0.2
    assert defense.findings()["unlearned_accuracy"] == float(defense.unlearned)
    moved = [n for n, p in net.named_parameters() if not torch.equal(p, before[n])]
    assert moved == [n for n in before if not n.endswith("mask")]
    assert [p for p in net.parameters() if p.requires_grad] == [
        mask.mask for mask in defense.masks.values()
    ]
    assert not any(p.grad is not None and bool(p.grad.any()) for p in net.parameters())
    defense.finish()


def test_unlearning_stops_in_the_middle_of_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as the last images are forgotten, however many more there are."""
    monkeypatch.setattr(rnp, "_ASKED", 16)
    net, clean = pruning.network(), pruning.clean_data(256)
    clean.labels = pruning.logits(net, clean).argmax(1)
    answers: list[torch.Tensor] = []
    net.register_forward_hook(lambda _, inputs, logits: answers.append(logits.argmax(1)))
    labels: list[torch.Tensor] = []
    batches = type(clean).batches

    def watched(*arguments: Any) -> Any:
        for batch in batches(*arguments):
            labels.append(batch[1])
            yield batch

    monkeypatch.setattr(type(clean), "batches", watched)
    defense = unlearning(unlearn_accuracy=0.2)
    defense.prepare(net, pruning.seeded())
    defense.study(net, clean, pruning.seeded())
    assert len(answers) < 256 // 8
    shares = [
        float((torch.cat(answers[n - 2 : n]) == torch.cat(labels[n - 2 : n])).float().mean())
        for n in range(2, len(answers) + 1)
    ]
    assert shares[-1] == float(defense.unlearned) <= 0.2
    assert all(share > 0.2 for share in shares[:-1])
    defense.finish()


def test_without_epochs_nothing_is_unlearned() -> None:
    net, clean = pruning.network(), pruning.clean_data()
    before = copy.deepcopy(net.state_dict())
    defense = ReconstructiveNeuronPruning(unlearn_epochs=0)
    defense.prepare(net, pruning.seeded())
    defense.study(net, clean, pruning.seeded())
    assert defense.findings()["unlearned_accuracy"] == 1.0
    defense.finish()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_step_of_ascent_by_hand() -> None:
    net, clean = pruning.network(), pruning.clean_data(8)
    other = copy.deepcopy(net).train()
    defense = unlearning(unlearn_epochs=1, unlearn_lr=0.01, unlearn_accuracy=0.0)
    defense.prepare(net, pruning.seeded())
    defense.study(net, clean, pruning.seeded())
    for norm in other.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 0.0
    loss = functional.cross_entropy(other(clean.normalize(clean.images)), clean.labels)
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in other.parameters() if p.grad is not None]
    norm_of_all = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    scale = min(1.0, 20.0 / float(norm_of_all))
    masks = {id(mask.mask) for mask in defense.masks.values()}
    found = dict(net.named_parameters())
    for name, parameter in other.named_parameters():
        layer, _, kind = name.rpartition(".")
        key = name if name in found else f"{layer}.parametrizations.{kind}.original"
        assert id(found[key]) not in masks
        assert parameter.grad is not None
        expected = parameter.detach() + 0.01 * scale * parameter.grad
        torch.testing.assert_close(found[key].detach(), expected, atol=1e-5, rtol=1e-4)
    defense.finish()


def test_it_prunes_the_network_that_came_in() -> None:
    net, clean = pruning.network(), pruning.clean_data(40)
    before = copy.deepcopy(net.state_dict())
    defense = unlearning(max_pruning_ca_drop=1.0, unlearn_epochs=3)
    drive(defense, net, clean, epochs=2, lr=1.0)
    pruned = defense.findings()["pruned"]
    assert defense.findings()["pruned_channels"] > 0
    for name, value in net.state_dict().items():
        layer, _, kind = name.rpartition(".")
        if layer in pruned and kind == "weight":
            before[name][pruned[layer]] = 0
        assert torch.equal(value, before[name]), name


def test_the_original_comes_back_after_an_interruption() -> None:
    net, clean = pruning.network(), pruning.clean_data()
    before = copy.deepcopy(net.state_dict())
    defense = unlearning()
    pruning.after_steps(defense, net, clean, steps=0)
    defense.finish()
    assert list(net.state_dict()) == list(before)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_resumed_run_still_has_the_original() -> None:
    net, clean = pruning.network(), pruning.clean_data()
    before = copy.deepcopy(net.state_dict())
    first = unlearning()
    pruning.after_steps(first, net, clean, steps=1)
    # A network of other weights: all that counts comes from the checkpoint.
    other, second = pruning.network(seed=9), unlearning()
    second.prepare(other, pruning.seeded())
    other.load_state_dict(net.state_dict())
    second.load_state_dict(first.state_dict())
    assert second.findings()["unlearned_accuracy"] == first.findings()["unlearned_accuracy"]
    second.set_masks({name: torch.ones_like(m.mask) for name, m in second.masks.items()})
    second.finish()
    for name, value in other.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_unlearning_that_overflows_is_reported() -> None:
    net, clean = pruning.network(), pruning.clean_data()
    defense = unlearning(unlearn_lr=1e38, unlearn_accuracy=0.0, unlearn_epochs=2)
    defense.prepare(net, pruning.seeded())
    with pytest.raises(RuntimeError, match="Lower `unlearn_lr`"):
        defense.study(net, clean, pruning.seeded())
    defense.finish()


def test_the_loss_is_weighted() -> None:
    net, clean = pruning.network(), pruning.clean_data()
    images = clean.normalize(clean.images)
    expected = 0.25 * functional.cross_entropy(net(images), clean.labels)
    defense = ReconstructiveNeuronPruning(alpha=0.25)
    defense.prepare(net, pruning.seeded())
    torch.testing.assert_close(defense.loss(net, images, clean.labels), expected)
    defense.finish()


def test_the_network_is_an_ordinary_one_afterwards() -> None:
    net, clean = pruning.network(), pruning.clean_data()
    defense = unlearning(max_pruning_ca_drop=1.0)
    defense.prepare(net, pruning.seeded())
    defense.study(net, clean, pruning.seeded())
    defense.set_masks({n: torch.full_like(m.mask, 0.96) for n, m in defense.masks.items()})
    with torch.no_grad():
        defense.masks["layer1.0.bn1"].mask[1] = 0.2
    defense.conclude(net, clean, pruning.seeded())
    masked = pruning.logits(net, clean)
    assert defense.findings()["pruned"] == {"layer1.0.bn1": [1]}
    defense.finish()
    defense.finish()
    torch.testing.assert_close(pruning.logits(net, clean), masked, atol=1e-5, rtol=1e-5)
    assert list(net.state_dict()) == list(pruning.network().state_dict())


@pytest.mark.parametrize(
    "arguments",
    [
        {"alpha": 0},
        {"unlearn_accuracy": 2},
        {"unlearn_epochs": 1.5},
        {"unlearn_lr": 0},
        {"unlearn_batch_size": 1},
        {"max_pruning_ca_drop": -1},
    ],
)
def test_arguments_are_checked(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}`"):
        ReconstructiveNeuronPruning(**arguments)  # type: ignore[arg-type]
