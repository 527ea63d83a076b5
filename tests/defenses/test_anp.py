import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.defenses import AdversarialNeuronPruning
from tests.defenses import pruning
from tests.defenses.drive import drive


def perturbed_copy(
    net: nn.Module, masks: dict[str, Tensor], delta: dict[str, Tensor], xi: dict[str, Tensor]
) -> nn.Module:
    """The network with its scales and shifts replaced by leaves, computed by hand."""
    copied = copy.deepcopy(net)
    for name, mask in masks.items():
        norm = copied.get_submodule(name)
        assert isinstance(norm, nn.BatchNorm2d)
        with torch.no_grad():
            norm.weight.copy_((mask + delta[name]) * norm.weight)
            norm.bias.copy_((1 + xi[name]) * norm.bias)
        norm.momentum = 0.0
    return copied


@pytest.mark.parametrize(("inner_steps", "epsilon"), [(1, 0.4), (3, 0.2), (1, 0.0)])
def test_the_loss_against_a_slow_loop(inner_steps: int, epsilon: float) -> None:
    net, clean = pruning.network(), pruning.clean_data(8)
    images, labels = clean.normalize(clean.images), clean.labels
    plain = copy.deepcopy(net)
    defense = AdversarialNeuronPruning(epsilon=epsilon, alpha=0.3, inner_steps=inner_steps)
    defense.prepare(net, pruning.seeded())
    generator = pruning.seeded(4)
    masks = {
        name: torch.rand(len(mask.mask), generator=generator)
        for name, mask in defense.masks.items()
    }
    defense.set_masks(masks)
    net.train()
    found = defense.loss(net, images, labels)

    # Slowly: the chain rule of a scale (m + d) g and a shift (1 + x) b, channel by channel.
    delta = {name: torch.zeros_like(mask) for name, mask in masks.items()}
    xi = {name: torch.zeros_like(mask) for name, mask in masks.items()}
    for _ in range(inner_steps):
        moved = perturbed_copy(plain, masks, delta, xi).train()
        functional.cross_entropy(moved(images), labels).backward()  # type: ignore[no-untyped-call]
        for name in masks:
            norm, original = moved.get_submodule(name), plain.get_submodule(name)
            assert isinstance(norm, nn.BatchNorm2d)
            assert isinstance(original, nn.BatchNorm2d)
            assert norm.weight.grad is not None
            assert norm.bias.grad is not None
            for c in range(len(masks[name])):
                up = float(norm.weight.grad[c]) * float(original.weight[c])
                delta[name][c] += epsilon / inner_steps * ((up > 0) - (up < 0))
                up = float(norm.bias.grad[c]) * float(original.bias[c])
                xi[name][c] += epsilon / inner_steps * ((up > 0) - (up < 0))
    zero = {name: torch.zeros_like(mask) for name, mask in masks.items()}
    with torch.no_grad():
        worst = functional.cross_entropy(
            perturbed_copy(plain, masks, delta, xi).train()(images), labels
        )
        natural = functional.cross_entropy(
            perturbed_copy(plain, masks, zero, zero).train()(images), labels
        )
    torch.testing.assert_close(found, 0.3 * natural + 0.7 * worst, atol=1e-4, rtol=1e-4)
    assert (float(worst) == pytest.approx(float(natural))) == (epsilon == 0)
    # Nothing of the perturbation is left, and only the masks learn.
    assert all(module.delta is None for module in defense._perturbed)
    found.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None for p in net.parameters() if not p.requires_grad)
    assert all(mask.mask.grad is not None for mask in defense.masks.values())
    defense.finish()


@pytest.mark.parametrize("inner_steps", [1, 2])
def test_the_gradient_is_that_of_two_separate_passes_and_a_search(inner_steps: int) -> None:
    """The formula as it stands, with a pass of its own for the loss without a perturbation."""
    net, clean = pruning.network(), pruning.clean_data(8)
    images, labels = clean.normalize(clean.images), clean.labels
    defense = AdversarialNeuronPruning(alpha=0.3, inner_steps=inner_steps)
    defense.prepare(net, pruning.seeded())
    passes = []
    net.register_forward_hook(lambda *_: passes.append(1))
    net.train()
    masks = [mask.mask for mask in defense.masks.values()]
    found = torch.autograd.grad(defense.loss(net, images, labels), masks)
    assert len(passes) == 1 + inner_steps
    defense._perturb(net, images, labels)
    perturbed = functional.cross_entropy(net(images), labels)
    for module in defense._perturbed:
        module.delta = None
    loss = 0.3 * functional.cross_entropy(net(images), labels) + 0.7 * perturbed
    for got, expected in zip(found, torch.autograd.grad(loss, masks), strict=True):
        torch.testing.assert_close(got, expected)
    defense.finish()


def test_running_statistics_and_weights_stay_as_they_came() -> None:
    net, clean = pruning.network(), pruning.clean_data()
    before = copy.deepcopy(net.state_dict())
    defense = AdversarialNeuronPruning(max_pruning_ca_drop=1.0)
    pruning.after_steps(defense, net, clean, steps=2)
    defense.conclude(net, clean, pruning.seeded())
    pruned = defense.findings()["pruned"]
    defense.finish()
    for name, value in net.state_dict().items():
        layer, _, kind = name.rpartition(".")
        if layer in pruned and kind == "weight":
            before[name][pruned[layer]] = 0
        if kind != "num_batches_tracked":
            assert torch.equal(value, before[name]), name
    assert all(m.momentum == 0.1 for m in net.modules() if isinstance(m, nn.BatchNorm2d))


def test_masks_stay_between_0_and_1() -> None:
    net, clean = pruning.network(), pruning.clean_data()
    defense = AdversarialNeuronPruning()
    pruning.after_steps(defense, net, clean, steps=3, lr=20.0)
    masks = torch.cat([mask.mask.detach() for mask in defense.masks.values()])
    assert masks.min() == 0
    assert masks.max() == 1
    assert 0 < float(defense.statistics()["mask_mean"]) < 1
    defense.finish()


def test_the_network_is_an_ordinary_one_afterwards() -> None:
    net, clean = pruning.network(), pruning.clean_data()
    pruning.assert_folds(AdversarialNeuronPruning(max_pruning_ca_drop=1.0), net, clean, lr=5.0)


def test_the_steps_do_not_see_what_is_held_out() -> None:
    net, clean = pruning.network(), pruning.clean_data(40)
    defense = AdversarialNeuronPruning(max_pruning_ca_drop=0.5)
    losses = drive(defense, net, clean, epochs=2)
    assert len(losses) == 2 * 32 // 8
    assert len(defense.findings()["held_out_ca"]) == 2


@pytest.mark.parametrize(
    "arguments", [{"epsilon": -1}, {"alpha": 2}, {"inner_steps": 0}, {"max_pruning_ca_drop": 1.5}]
)
def test_arguments_are_checked(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}`"):
        AdversarialNeuronPruning(**arguments)  # type: ignore[arg-type]
