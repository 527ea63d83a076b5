from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.defenses import CleanData, FisherPurification
from fst_lightning.defenses.fip import SingularValues, fisher_trace, per_sample_gradients
from fst_lightning.models import preact_resnet18, small_resnet
from tests import tiny
from tests.defenses.drive import drive


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clean_images(count: int = 16) -> CleanData:
    return CleanData(tiny.images(count), tiny.labels(count), mean=[0.5] * 3, std=[0.25] * 3)


def warmed(net: nn.Module, images: Tensor) -> nn.Module:
    """With running statistics that are not those of a new network."""
    net.train()
    with torch.no_grad():
        net(images)
    return net


def slow_trace(net: nn.Module, parameters: list[nn.Parameter], images: Tensor) -> Tensor:
    """One image after the other, with a graph."""
    net.eval()
    with torch.no_grad():
        drawn = torch.multinomial(net(images).softmax(1), 1)[:, 0]
    traces = []
    for image, label in zip(images, drawn, strict=True):
        likelihood = net(image[None]).log_softmax(1)[0, label]
        slopes = torch.autograd.grad(likelihood, parameters, create_graph=True)
        traces.append(torch.stack([slope.square().sum() for slope in slopes]).sum())
    return torch.stack(traces).mean()


@pytest.mark.parametrize("which", ["small_resnet", "conv_net"])
def test_the_trace_and_its_gradient_are_those_of_a_loop(which: str) -> None:
    net: nn.Module = tiny.conv_net(dropout=0.3) if which == "conv_net" else small_resnet(4, width=2)
    images, _ = next(clean_images().batches(5))
    net = warmed(net.double(), images.double())
    parameters = dict(net.named_parameters())
    torch.manual_seed(3)
    trace = fisher_trace(net, parameters, images.double())
    assert net.training
    gradients = torch.autograd.grad(trace, list(parameters.values()))
    torch.manual_seed(3)
    expected = slow_trace(net, list(parameters.values()), images.double())
    assert float(trace.detach()) == pytest.approx(float(expected.detach()), rel=1e-9)
    assert float(trace.detach()) > 0.01
    for got, wanted in zip(
        gradients, torch.autograd.grad(expected, list(parameters.values())), strict=True
    ):
        assert torch.allclose(got, wanted, rtol=1e-7, atol=1e-9)


def test_the_trace_in_a_step_normalizes_by_the_batch_as_by_constants() -> None:
    net, twin = tiny.conv_net().double(), tiny.conv_net().double()
    images, labels = next(clean_images().batches(8))
    images = images.double()
    inputs: dict[str, Tensor] = {}
    for name in ("bn1", "bn2"):
        twin.get_submodule(name).register_forward_pre_hook(
            lambda _, given, name=name: inputs.update({name: given[0]})
        )
    cross_entropy = functional.cross_entropy(twin.train()(images), labels)
    moved = {name: value.clone() for name, value in twin.named_buffers()}
    gradients = torch.autograd.grad(cross_entropy, list(twin.parameters()))
    with torch.no_grad():
        for name, values in inputs.items():
            norm = twin.get_submodule(name)
            assert isinstance(norm, nn.BatchNorm2d)
            norm.running_mean = values.mean((0, 2, 3))
            norm.running_var = values.var((0, 2, 3), correction=0)
    torch.manual_seed(1)
    trace = slow_trace(twin, list(twin.parameters()), images[:5])
    more = torch.autograd.grad(trace, list(twin.parameters()))
    defense = FisherPurification(eta_f=0.5, trace_images=5)
    defense.prepare(net, seeded())
    torch.manual_seed(1)
    loss = defense.loss(net.train(), images, labels)
    expected = float(cross_entropy.detach()) + 0.5 * float(trace.detach())
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)
    for got, one, other in zip(
        torch.autograd.grad(loss, list(net.parameters())), gradients, more, strict=True
    ):
        assert torch.allclose(got, one + 0.5 * other, rtol=1e-4, atol=1e-6)
    # The network remembers the batch as it does without the trace.
    assert all(torch.equal(value, moved[name]) for name, value in net.named_buffers())
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_the_trace_of_the_head_in_closed_form() -> None:
    r"""Of a softmax head: the mean of |p - e_y|^2 (|h|^2 + 1)."""
    net = tiny.conv_net()
    images, _ = next(clean_images().batches(8))
    defense = FisherPurification(scope="head", eta_f=2.0, eta_r=0.0, trace_images=5)
    defense.prepare(net, seeded())
    torch.manual_seed(1)
    loss = defense.loss(net.eval(), images, torch.arange(8) % 4)
    torch.manual_seed(1)
    answers = net(images[:5]).softmax(1)
    drawn = torch.multinomial(answers.detach(), 1)[:, 0]
    features = net[:-1](images[:5])
    errors = answers - functional.one_hot(drawn, 4)
    trace = (errors.square().sum(1) * (features.square().sum(1) + 1)).mean()
    expected = functional.cross_entropy(net(images), torch.arange(8) % 4) + 2 * trace
    assert torch.allclose(loss, expected)
    assert torch.allclose(defense.statistics()["fisher_trace"], trace)
    parameters = list(net.parameters())
    for got, wanted in zip(
        torch.autograd.grad(loss, parameters),
        torch.autograd.grad(expected, parameters),
        strict=True,
    ):
        assert torch.allclose(got, wanted, atol=1e-5)


def test_per_sample_gradients_of_another_network() -> None:
    net = preact_resnet18(4, width=2)
    images = torch.rand(2, 3, 16, 16, generator=seeded())
    head = {name: p for name, p in net.named_parameters() if name in list(net.state_dict())[-2:]}
    parameters = head | dict(list(net.named_parameters())[:1])
    gradients = per_sample_gradients(net, parameters, images, torch.tensor([0, 1]))
    net.eval()
    for row in range(2):
        loss = functional.cross_entropy(net(images[row : row + 1]), torch.tensor([row]))
        for name, slope in zip(
            parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True
        ):
            assert torch.allclose(gradients[name][row], slope, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("scope", ["all", "head"])
def test_the_diagonal_and_the_distance_from_what_came_in(scope: Any) -> None:
    clean = clean_images(10)
    net = warmed(tiny.conv_net(), clean.normalize(clean.images)).eval()
    defense = FisherPurification(eta_r=3.0, scope=scope, trace_images=10)
    defense.prepare(net, seeded())
    assert defense.penalty() is None
    defense.study(net, clean, seeded(2))
    parameters = [p for name, p in net.named_parameters() if scope == "all" or "head" in name]
    images = clean.normalize(clean.images)
    drawn = torch.multinomial(net(images).detach().softmax(1), 1, generator=seeded(2))[:, 0]
    expected = torch.zeros(sum(p.numel() for p in parameters))
    for image, label in zip(images, drawn, strict=True):
        likelihood = net(image[None]).log_softmax(1)[0, label]
        slopes = torch.autograd.grad(likelihood, parameters)
        expected += torch.cat([slope.flatten() for slope in slopes]).square() / 10
    assert torch.allclose(defense.fisher_diagonal, expected, rtol=1e-3, atol=1e-7)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.5)
    penalty = defense.penalty()
    assert penalty is not None
    assert float(penalty.detach()) == pytest.approx(1.5 * 0.25 * float(expected.sum()), rel=1e-4)


def test_the_trace_is_added_in_every_so_many_steps_also_after_a_restart() -> None:
    net = tiny.conv_net().eval()
    images, labels = next(clean_images().batches(8))
    plain = functional.cross_entropy(net(images), labels)
    defense = FisherPurification(gap=3, eta_r=0)
    defense.prepare(net, seeded())
    added = []
    for step in range(8):
        if step == 5:
            kept, defense = defense.state_dict(), FisherPurification(gap=3, eta_r=0)
            defense.prepare(net, seeded())
            defense.load_state_dict(kept)
        added.append(not torch.equal(defense.loss(net, images, labels), plain))
    assert added == [step % 3 == 0 for step in range(8)]


def test_singular_values_change_and_nothing_else() -> None:
    weight = torch.randn(4, 3, 2, 2, generator=seeded(), dtype=torch.float64)
    split = SingularValues(weight.float())
    assert torch.equal(split(weight.float()), weight.float())
    left, values, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    change = torch.tensor([0.5, -0.1, 0.2, 1.0])
    with torch.no_grad():
        split.change.copy_(change)
    expected = (left * (values + change)) @ right
    assert torch.allclose(split(weight.float()).double().flatten(1), expected, atol=1e-5)


def test_the_fast_variant_trains_singular_values_and_folds_them() -> None:
    net = tiny.conv_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    parameters = {name: id(parameter) for name, parameter in net.named_parameters()}
    images = clean_images().normalize(tiny.images(5, seed=8))
    defense = FisherPurification(fast=True, gap=1)
    defense.prepare(net, seeded())
    assert torch.equal(net.eval()(images), tiny.conv_net().eval()(images))
    trained = {name: p.shape for name, p in net.named_parameters() if p.requires_grad}
    assert {name.split(".")[0]: tuple(shape) for name, shape in trained.items()} == {
        "conv1": (8,),
        "conv2": (12,),
        "head": (4,),
    }
    defense.study(net, clean_images(), seeded())
    assert defense.fisher_diagonal.shape == (24,)
    defense.finish()
    losses = drive(defense, net, clean_images(), epochs=20, lr=0.1)
    assert sum(losses[-4:]) < sum(losses[:4])
    assert {name: id(parameter) for name, parameter in net.named_parameters()} == parameters
    assert list(net.state_dict()) == list(before)
    assert all(parameter.requires_grad for parameter in net.parameters())
    for name in ("conv1.weight", "conv2.weight", "head.weight"):
        after = net.state_dict()[name].flatten(1)
        left, _, right = torch.linalg.svd(before[name].flatten(1), full_matrices=False)
        core = left.T @ after @ right.T
        off = core - core.diag().diag()
        assert float(off.norm()) < 1e-5
        assert not torch.allclose(after, before[name].flatten(1), atol=1e-4)
    for name in ("bn1.weight", "bn2.bias", "head.bias"):
        assert torch.equal(net.state_dict()[name], before[name])


def test_no_singular_value_of_the_fast_variant_gets_negative() -> None:
    """Steps that are far too long push them below zero; there they stop."""
    net = tiny.conv_net()
    before = {
        name: value.double().flatten(1)
        for name, value in net.state_dict().items()
        if value.ndim > 1
    }
    drive(FisherPurification(fast=True, eta_f=0), net, clean_images(), epochs=2, lr=50.0)
    zeros = 0
    for name, weight in before.items():
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        core = (left.T @ net.state_dict()[name].double().flatten(1) @ right.T).diag()
        assert float(core.min()) > -1e-4 * float(values.max())
        zeros += int((core.abs() < 1e-4 * values.max()).sum())
    assert zeros > 0


def test_what_the_fast_variant_computes_is_what_is_folded() -> None:
    net = tiny.conv_net().eval()
    defense = FisherPurification(fast=True)
    defense.prepare(net, seeded())
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("change"):
                parameter.add_(0.3)
    images = clean_images().normalize(tiny.images(5))
    expected = net(images)
    defense.finish()
    defense.finish()
    assert torch.equal(net(images), expected)


def test_a_run() -> None:
    losses = drive(FisherPurification(), tiny.conv_net(), clean_images(), epochs=5)
    assert losses[-1] < losses[0]


def test_refuses_a_network_that_is_frozen() -> None:
    net = tiny.conv_net().requires_grad_(False)
    with pytest.raises(ValueError, match=r"weights to train in the network, but all"):
        FisherPurification().prepare(net, seeded())
    with pytest.raises(ValueError, match=r"layers to train the singular values of"):
        FisherPurification(fast=True).prepare(net, seeded())


@pytest.mark.parametrize(
    "arguments",
    [{"eta_f": -1}, {"eta_r": -1}, {"gap": 0}, {"trace_images": 0}, {"scope": "block"}],
)
def test_refuses_arguments(arguments: dict[str, Any]) -> None:
    (name,) = arguments
    with pytest.raises(ValueError, match=f"Expected `{name}` to be "):
        FisherPurification(**arguments)
