import pytest
import torch
from torch import Tensor, nn

from fst_lightning.optim import LookaheadSGD


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
