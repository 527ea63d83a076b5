import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fst_lightning import BackdoorDataModule, BackdoorModule
from fst_lightning.attacks import BadNets
from fst_lightning.models import airbench
from fst_lightning.modules.classifier import with_total_steps
from fst_lightning.modules.recipes import LookaheadSGD, MuonSGD, orthogonalised, triangle
from tests import tiny


def test_the_triangle() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=2.0)
    schedule = triangle(optimizer, total_steps=10, start=0.2, peak=0.4, end=0.1)
    rates = []
    for _ in range(11):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    expected = [0.4, 0.8, 1.2, 1.6, 2.0, 1.7, 1.4, 1.1, 0.8, 0.5, 0.2]
    assert rates == pytest.approx(expected)


def slow_lookahead(steps: int, total: int, decay: float, every: int) -> list[float]:
    """On f(w) = w^2 / 2, plain SGD with rate 0.1, one number."""
    weight, average, seen = 1.0, None, []
    for count in range(1, steps + 1):
        weight -= 0.1 * weight
        if average is None:
            average = weight
        if count % every == 0 or count == total:
            share = 0.0 if count == total else 1 - decay * (count / total) ** 3
            average += share * (weight - average)
            weight = average
        seen.append(weight)
    return seen


@pytest.mark.parametrize(("total", "decay", "every"), [(12, 0.8, 5), (10, 0.5, 2), (7, 0.9, 3)])
def test_lookahead_against_a_loop(total: int, decay: float, every: int) -> None:
    weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = LookaheadSGD([weight], total_steps=total, decay=decay, every=every, lr=0.1)
    seen = []
    for _ in range(total):
        weight.grad = weight.detach().clone()
        optimizer.step()
        seen.append(float(weight.detach()))
    assert seen == pytest.approx(slow_lookahead(total, total, decay, every), rel=1e-12)


def test_lookahead_goes_on_from_its_state() -> None:
    def run(parts: list[int]) -> Tensor:
        weight = nn.Parameter(torch.ones(3))
        state = None
        for steps in parts:
            optimizer = LookaheadSGD([weight], total_steps=9, every=2, lr=0.1, momentum=0.9)
            if state is not None:
                optimizer.load_state_dict(state)
            for _ in range(steps):
                weight.grad = weight.detach() * torch.tensor([1.0, 2.0, -1.0])
                optimizer.step()
            state = optimizer.state_dict()
        return weight.detach()

    assert torch.equal(run([9]), run([4, 5]))


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_orthogonalised_is_a_polynomial_of_the_singular_values(
    shape: tuple[int, int], iterations: int
) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, singular, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    singular = singular / singular.square().sum().sqrt()
    for _ in range(iterations):
        singular = 3.4445 * singular - 4.7750 * singular**3 + 2.0315 * singular**5
    expected = left @ singular.diag() @ right
    # bfloat16 has three digits.
    assert torch.allclose(orthogonalised(matrix, iterations).double(), expected, atol=0.03)


def test_singular_values_from_003_on_come_near_1() -> None:
    singular = torch.logspace(-1.5, 0, 40)
    results = torch.linalg.svdvals(orthogonalised(singular.diag()).float())
    scaled = singular / singular.norm()
    assert float(results[: int((scaled > 0.03).sum())].min()) > 0.6
    assert float(results.max()) < 1.3


def slow_muon(weight: Tensor, gradients: list[Tensor], rates: list[float]) -> Tensor:
    """Muon as its formula has it, one output channel's row at a time."""
    rows = torch.stack([channel.flatten() for channel in weight])
    momentum = torch.zeros_like(rows)
    for gradient, rate in zip(gradients, rates, strict=True):
        slope = torch.stack([channel.flatten() for channel in gradient])
        momentum = 0.6 * momentum + slope
        length = sum(float(value) ** 2 for value in rows.flatten()) ** 0.5
        rows = rows * len(rows) ** 0.5 / length - rate * orthogonalised(slope + 0.6 * momentum)
    return rows.reshape(weight.shape)


def test_muon_steps_filters_and_sgd_the_rest() -> None:
    torch.manual_seed(0)
    filters, other = nn.Parameter(torch.randn(4, 3, 2, 2)), nn.Parameter(torch.randn(5))
    frozen = nn.Parameter(torch.randn(2, 2, 1, 1), requires_grad=False)
    alone = nn.Parameter(other.detach().clone())
    start, fixed = filters.detach().clone(), frozen.detach().clone()
    options: dict[str, Any] = {"lr": 0.5, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
    optimizer = MuonSGD([filters, other, frozen], filter_lr=0.1, **options)
    plain = torch.optim.SGD([alone], **options)
    schedules = [
        triangle(one, total_steps=4, start=1.0, peak=0.0, end=0.0) for one in (optimizer, plain)
    ]
    gradients = [torch.randn_like(filters) for _ in range(4)]
    for gradient in gradients:
        filters.grad = gradient.clone()
        other.grad, alone.grad = (torch.ones(5) for _ in range(2))
        optimizer.step()
        plain.step()
        # The gradients are still there, for whoever looks at them after the step.
        assert torch.equal(filters.grad, gradient)
        for schedule in schedules:
            schedule.step()
    expected = slow_muon(start, gradients, [0.1, 0.075, 0.05, 0.025])
    assert torch.allclose(filters.detach(), expected, atol=1e-4)
    assert torch.equal(other, alone)
    assert torch.equal(frozen, fixed)


def test_muon_goes_on_from_its_state() -> None:
    def run(parts: list[int]) -> Tensor:
        weight = nn.Parameter(torch.linspace(-1, 1, 24).reshape(3, 2, 2, 2))
        state = None
        for steps in parts:
            optimizer = MuonSGD([weight], lr=0.1)
            if state is not None:
                optimizer.load_state_dict(state)
            for _ in range(steps):
                weight.grad = weight.detach().square() - 0.5
                optimizer.step()
            state = optimizer.state_dict()
        return weight.detach()

    assert torch.equal(run([6]), run([2, 4]))


def test_muon_calls_the_closure_once_with_gradients() -> None:
    weight = nn.Parameter(torch.ones(2, 1, 1, 1))
    optimizer = MuonSGD([weight], lr=0.1)
    calls = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (weight * torch.tensor([1.0, 2.0]).view(2, 1, 1, 1)).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        calls.append(loss.detach())
        return loss.detach()

    with torch.no_grad():
        assert float(optimizer.step(closure)) == 3.0
    assert len(calls) == 1


def test_muon_moves_filters_where_the_rest_stands_still() -> None:
    weight = nn.Parameter(torch.randn(2, 3, 1, 1))
    start = weight.detach().clone()
    optimizer = MuonSGD([weight], lr=0.0)
    schedule = triangle(optimizer, total_steps=2, start=1.0, peak=0.0, end=0.0)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    schedule.step()
    assert not torch.equal(weight, start)


def test_muon_refuses_a_rate_of_zero() -> None:
    with pytest.raises(ValueError, match="Invalid learning rate of filters: 0"):
        MuonSGD([nn.Parameter(torch.ones(1))], filter_lr=0.0, lr=0.1)


class Steps:
    """A schedule that keeps the number of steps it is told."""

    def __init__(self) -> None:
        self.told: list[int] = []

    def __call__(self, optimizer: torch.optim.Optimizer, total_steps: int) -> object:
        self.told.append(total_steps)
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)


def test_a_recipe_is_told_its_steps_and_a_network_its_rates(tmp_path: Path) -> None:
    steps = Steps()
    net = airbench(tiny.NUM_CLASSES, width=4)
    data = BackdoorDataModule(tiny.source(num_train=40), BadNets(poison_ratio=0.1), batch_size=8)
    waits: dict[str, Any] = {"total_steps": None}
    optimizer_of = functools.partial(LookaheadSGD, lr=0.1, weight_decay=0.2, **waits)
    schedule_of: Any = functools.partial(steps, **waits)
    module = BackdoorModule(net, data.attack, optimizer_of, schedule_of, "step")
    trainer = tiny.trainer(tmp_path, max_epochs=4, limit_val_batches=0)
    trainer.fit(module, data)
    assert steps.told == [4 * 5]
    optimizer = trainer.optimizers[0]
    assert isinstance(optimizer, LookaheadSGD)
    assert optimizer.total_steps == 20
    rates = {g["lr_scale"]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups}
    assert rates == {1.0: (0.1, 0.2), 64.0: pytest.approx((6.4, 0.2 / 64))}
    assert with_total_steps(steps, 3)(optimizer) is not None
