from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fst_lightning.optim import MuonSGD, triangle
from fst_lightning.optim.muon_sgd import orthogonalised


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
    with pytest.raises(ValueError, match="`filter_lr` to be a number greater than 0, but got 0"):
        MuonSGD([nn.Parameter(torch.ones(1))], filter_lr=0.0, lr=0.1)
