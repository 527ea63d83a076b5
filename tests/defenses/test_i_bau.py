from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.defenses import CleanData, ImplicitUnlearning
from fst_lightning.defenses.i_bau import implicit_loss
from tests import tiny
from tests.defenses.drive import drive


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clean_images(count: int = 16) -> CleanData:
    return CleanData(tiny.images(count), tiny.labels(count), mean=[0.5] * 3, std=[0.2, 0.25, 0.5])


def total_derivative(objective: Callable[[Tensor, Tensor], Tensor], theta: Tensor) -> Tensor:
    """By central differences of the value at the maximum, which is solved for anew."""
    result = torch.zeros_like(theta)
    for index in range(theta.numel()):
        values = []
        for sign in (1, -1):
            moved = theta.clone()
            moved[index] += sign * 1e-5
            values.append(float(objective(moved, moved)))
        result[index] = (values[0] - values[1]) / 2e-5
    return result


class Quadratic:
    r"""H(d, t) = <B t, d> - d^T A d / 2 + |t|^2, and an outer objective with other weights."""

    def __init__(self, size: int = 4, seed: int = 0) -> None:
        root = torch.randn(size, size, dtype=torch.float64, generator=seeded(seed))
        self.curvature = root @ root.T / size + torch.eye(size, dtype=torch.float64)
        self.mixing = torch.randn(size, 3, dtype=torch.float64, generator=seeded(seed + 1))

    def __call__(self, delta: Tensor, theta: Tensor) -> Tensor:
        force = self.mixing @ theta
        return force @ delta - delta @ self.curvature @ delta / 2 + theta @ theta

    def maximum(self, theta: Tensor, radius: float) -> Tensor:
        """By bisection on the multiplier of the constraint."""

        def point(multiplier: float) -> Tensor:
            matrix = self.curvature + multiplier * torch.eye(
                len(self.curvature), dtype=torch.float64
            )
            solved: Tensor = torch.linalg.solve(matrix, self.mixing @ theta)
            return solved

        if float(point(0.0).norm()) <= radius:
            return point(0.0)
        low, high = 0.0, 1e4
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if float(point(middle).norm()) > radius else (low, middle)
        return point(low)


@pytest.mark.parametrize("radius", [100.0, 0.5])
def test_the_total_derivative_of_a_quadratic(radius: float) -> None:
    """At a maximum inside the ball, and at one on its boundary."""
    objective = Quadratic()
    theta = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        delta = objective.maximum(theta, radius)
    assert (float(delta.norm()) < radius - 1e-6) == (radius > 1)
    loss = implicit_loss(
        lambda d: objective(d, theta), delta, radius=radius, step=0.3, iterations=300
    )
    assert float(loss.detach()) == pytest.approx(float(objective(delta, theta).detach()))
    (gradient,) = torch.autograd.grad(loss, theta)
    expected = total_derivative(
        lambda t, _: objective(objective.maximum(t, radius), t), theta.detach()
    )
    assert torch.allclose(gradient, expected, atol=1e-5)


def test_away_from_the_maximum_it_is_the_exact_inverse() -> None:
    objective = Quadratic(seed=5)
    theta = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    delta = torch.tensor([0.1, 0.3, -0.2, 0.4], dtype=torch.float64)
    loss = implicit_loss(lambda d: objective(d, theta), delta, radius=9, step=0.3, iterations=300)
    (gradient,) = torch.autograd.grad(loss, theta)
    # dH/dt + (d grad_d H / dt)^T A^-1 grad_d H
    force = objective.mixing @ theta.detach() - objective.curvature @ delta
    expected = objective.mixing.T @ delta + 2 * theta.detach()
    expected += objective.mixing.T @ torch.linalg.solve(objective.curvature, force)
    assert torch.allclose(gradient, expected, atol=1e-9)


@pytest.mark.parametrize("iterations", [0, 1, 4])
def test_the_iterations_are_a_truncated_series(iterations: int) -> None:
    objective = Quadratic(seed=2)
    theta = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    delta = torch.tensor([0.1, 0.3, -0.2, 0.4], dtype=torch.float64)
    loss = implicit_loss(
        lambda d: objective(d, theta), delta, radius=9, step=0.1, iterations=iterations
    )
    (gradient,) = torch.autograd.grad(loss, theta)
    jacobian = torch.eye(4) - 0.1 * objective.curvature
    force = objective.mixing @ theta.detach() - objective.curvature @ delta
    powers = [torch.linalg.matrix_power(jacobian, k) @ force for k in range(iterations + 1)]
    adjoint = torch.stack(powers).sum(0)
    expected = objective.mixing.T @ delta + 2 * theta.detach() + 0.1 * objective.mixing.T @ adjoint
    assert torch.allclose(gradient, expected, atol=1e-12)


def test_the_hypergradient_of_a_network_on_the_boundary_is_the_exact_inverse() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    images = torch.rand(6, 3, 2, 2, dtype=torch.float64)
    labels = torch.arange(6) % 3
    parameters = list(net.parameters())

    def value(delta: Tensor) -> Tensor:
        return functional.cross_entropy(net(images + delta.view(1, 3, 2, 2)), labels)

    def mapped(delta: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad(value(delta), delta, create_graph=True)
        moved = delta + 2.0 * slope
        inside: Tensor = moved * 0.7 / moved.norm()
        return inside

    # Near the maximum, but not at it: there the implicit part is zero (Danskin's theorem).
    delta = torch.zeros(12, dtype=torch.float64, requires_grad=True)
    for _ in range(3):
        delta = mapped(delta).detach().requires_grad_()
    partial = torch.autograd.grad(value(delta), [delta, *parameters])
    jacobian = torch.stack([torch.autograd.grad(mapped(delta)[row], delta)[0] for row in range(12)])
    adjoint = torch.linalg.solve(torch.eye(12, dtype=torch.float64) - jacobian.T, partial[0])
    implicit = torch.autograd.grad(mapped(delta) @ adjoint, parameters)
    loss = implicit_loss(value, delta, radius=0.7, step=2.0, iterations=2000)
    for got, direct, indirect in zip(
        torch.autograd.grad(loss, parameters), partial[1:], implicit, strict=True
    ):
        assert float(indirect.norm()) > 1e-3 * float(direct.norm())
        assert torch.allclose(got, direct + indirect, atol=1e-10)


def test_the_search_finds_what_fools_all_images_in_pixel_units() -> None:
    """A linear network's loss: no other direction of that length is worse."""
    net, clean = tiny.linear_net(3 * tiny.SIZE**2, 2), clean_images()
    clean.labels.zero_()  # one class: the worst perturbation is along w_1 - w_0
    defense = ImplicitUnlearning(radius=3.0, search_steps=20, search_lr=0.5, search_batch_size=5)
    defense.begin_epoch(net.train(), clean, 0, seeded())
    assert net.training
    assert all(parameter.grad is None for parameter in net.parameters())
    head = net.get_submodule("1")
    assert isinstance(head, nn.Linear)
    away = (head.weight[1] - head.weight[0]).detach().view(1, 3, tiny.SIZE, tiny.SIZE)
    worst = away / torch.tensor([0.2, 0.25, 0.5]).view(1, 3, 1, 1)  # one unit of [0, 1] is 1 / std
    worst *= 3.0 / worst.norm()
    assert torch.allclose(defense.delta, worst, atol=1e-3)
    assert float(defense.statistics()["delta_norm"]) == pytest.approx(3.0)


@pytest.mark.parametrize(("share", "count"), [(1.0, 8), (0.5, 4), (0.01, 1)])
def test_the_loss_is_on_the_batch_itself_perturbed_in_part(share: float, count: int) -> None:
    net, clean = tiny.conv_net(), clean_images()
    defense = ImplicitUnlearning(share, radius=2.0, search_steps=2)
    defense.prepare(net, seeded())
    assert list(defense.always_eval()) == [net]
    defense.begin_epoch(net, clean, 0, seeded())
    net.eval()
    for images, labels in clean.batches(8):
        moved = images.clone()
        moved[:count] += defense.delta * torch.tensor([5.0, 4.0, 2.0]).view(1, 3, 1, 1)
        expected = functional.cross_entropy(net(moved), labels)
        assert torch.allclose(defense.loss(net, images, labels), expected)


@pytest.mark.parametrize("share", [1.0, 0.4])
def test_the_gradient_is_that_of_the_whole_mini_batch_at_once(share: float) -> None:
    """Images without the perturbation are in the map whose fixed point it is, but move nothing."""
    net, clean = tiny.conv_net().double(), clean_images()
    clean.dtype = torch.float64
    defense = ImplicitUnlearning(share, radius=2.0, search_steps=2)
    defense.prepare(net, seeded())
    defense.begin_epoch(net, clean, 0, seeded())
    net.eval()
    images, labels = next(clean.batches(10))
    scale = defense.unit.repeat(10, 1, 1, 1)
    scale[round(share * 10) :] = 0
    whole = implicit_loss(
        lambda delta: functional.cross_entropy(net(images + delta * scale), labels),
        defense.delta,
        radius=2.0,
        step=0.1,
        iterations=5,
    )
    found = defense.loss(net, images, labels)
    torch.testing.assert_close(found, whole)
    parameters = list(net.parameters())
    for got, expected in zip(
        torch.autograd.grad(found, parameters), torch.autograd.grad(whole, parameters), strict=True
    ):
        torch.testing.assert_close(got, expected)


def test_a_run_leaves_the_running_statistics_alone() -> None:
    net = tiny.conv_net()
    before = {name: value.clone() for name, value in net.named_buffers()}
    losses = drive(
        ImplicitUnlearning(radius=0.5, search_steps=2, fixed_point_iterations=2),
        net,
        clean_images(),
        epochs=20,
        lr=0.5,
    )
    assert losses[-1] < losses[0]
    assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())


@pytest.mark.parametrize(
    "arguments",
    [
        {"share": 0},
        {"radius": 0},
        {"search_steps": -1},
        {"search_lr": 0},
        {"search_batch_size": 0},
        {"fixed_point_iterations": 0.5},
        {"fixed_point_step": 0},
    ],
)
def test_refuses_arguments(arguments: dict[str, Any]) -> None:
    (name,) = arguments
    with pytest.raises(ValueError, match=f"Expected `{name}` to be a"):
        ImplicitUnlearning(**arguments)
