from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.defenses import CleanData, FineTuningSAM
from tests import tiny
from tests.defenses.drive import drive


def batch(count: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    return tiny.images(count, seed=seed) / 255, tiny.labels(count, seed=seed + 1)


def copies(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


@pytest.mark.parametrize("adaptive", [True, False])
def test_the_perturbation_has_length_rho_in_its_metric_and_maximizes_the_linear_gain(
    adaptive: bool,
) -> None:
    net = tiny.conv_net().double().train()
    images, labels = batch()
    images = images.double()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    twin = tiny.conv_net().double().train()
    loss = functional.cross_entropy(twin(images), labels)
    slopes = torch.autograd.grad(loss, list(twin.parameters()))
    defense = FineTuningSAM(rho=0.3, adaptive=adaptive, label_smoothing=0.0)
    defense.loss(net, images, labels)
    # By loops over single weights.
    length = gain = best = 0.0
    for (name, moved), slope in zip(net.named_parameters(), slopes, strict=True):
        rows = zip(
            (moved.detach() - before[name]).flatten().tolist(),
            before[name].flatten().tolist(),
            slope.flatten().tolist(),
            strict=True,
        )
        for move, weight, steepness in rows:
            size = abs(weight) if adaptive else 1.0
            if size == 0:
                assert move == 0
                continue
            length += (move / size) ** 2
            gain += move * steepness
            best += (size * steepness) ** 2
    assert length**0.5 == pytest.approx(0.3, rel=1e-6)
    # Cauchy-Schwarz: no other move of this length gains more to first order.
    assert gain == pytest.approx(0.3 * best**0.5, rel=1e-6)


def test_the_gradient_is_that_of_the_moved_weights_and_the_weights_come_back_bit_by_bit() -> None:
    net, twin = tiny.conv_net().train(), tiny.conv_net().train()
    images, labels = batch()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    defense = FineTuningSAM(rho=2.0)
    loss = defense.loss(net, images, labels)
    moved = {name: p.detach().clone() for name, p in net.named_parameters()}
    torch.autograd.backward(loss)
    defense.after_backward()
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, before[name])
        assert not torch.equal(moved[name], before[name]) or not bool(before[name].any())
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            parameter.copy_(moved[name])
    expected = functional.cross_entropy(twin(images), labels, label_smoothing=0.1)
    torch.autograd.backward(expected)
    assert torch.equal(loss, expected)
    for parameter, other in zip(net.parameters(), twin.parameters(), strict=True):
        assert parameter.grad is not None
        assert other.grad is not None
        assert torch.equal(parameter.grad, other.grad)


def test_batchnorm_remembers_the_first_pass_alone() -> None:
    net, twin = tiny.conv_net().train(), tiny.conv_net().train()
    images, labels = batch()
    defense = FineTuningSAM()
    defense.loss(net, images, labels)
    defense.after_backward()
    twin(images)
    kept, expected = copies(net), copies(twin)
    assert list(kept) == list(expected)
    assert all(torch.equal(kept[name], expected[name]) for name in kept)


def test_without_a_radius_it_is_plain_fine_tuning() -> None:
    net, twin = tiny.conv_net().train(), tiny.conv_net().train()
    images, labels = batch()
    defense = FineTuningSAM(rho=0, label_smoothing=0)
    loss = defense.loss(net, images, labels)
    assert torch.equal(loss, functional.cross_entropy(twin(images), labels))
    assert float(defense.statistics()["sharpness"]) == 0


def test_frozen_weights_stay_and_unused_ones_do_no_harm() -> None:
    net = tiny.conv_net().train()
    net.add_module("spare", nn.Identity())
    net.get_submodule("spare").register_parameter("weight", nn.Parameter(torch.ones(3)))
    frozen = next(net.parameters()).requires_grad_(False)
    kept = frozen.detach().clone()
    FineTuningSAM().loss(net, *batch())
    assert torch.equal(frozen, kept)


def test_no_slope_no_move() -> None:
    net = tiny.linear_net(3 * tiny.SIZE**2, 1)  # one class: the loss is 0 everywhere
    before = copies(net)
    images, labels = batch()
    FineTuningSAM(label_smoothing=0).loss(net, images, labels * 0)
    assert all(torch.equal(value, before[name]) for name, value in copies(net).items())


def test_finish_and_a_second_loss_put_the_weights_back_too() -> None:
    net = tiny.conv_net().eval()
    before = copies(net)
    defense = FineTuningSAM(label_smoothing=0)
    first = defense.loss(net, *batch())
    assert torch.equal(defense.loss(net, *batch()), first)
    defense.finish()
    assert all(torch.equal(value, before[name]) for name, value in copies(net).items())


def test_a_run() -> None:
    net = tiny.conv_net()
    clean = CleanData(tiny.images(16), tiny.labels(16), mean=[0.5] * 3, std=[0.25] * 3)
    losses = drive(FineTuningSAM(rho=0.1), net, clean, epochs=10)
    assert losses[-1] < losses[0]
    assert all(bool(torch.isfinite(value).all()) for value in net.state_dict().values())


@pytest.mark.parametrize(
    "arguments", [{"rho": -1}, {"rho": None}, {"label_smoothing": 1.5}, {"rho": float("nan")}]
)
def test_refuses_arguments(arguments: dict[str, Any]) -> None:
    (name,) = arguments
    with pytest.raises(ValueError, match=f"Expected `{name}` to be a number"):
        FineTuningSAM(**arguments)
