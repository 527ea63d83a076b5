import pytest
import torch

from fst_lightning.optim import triangle


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


@pytest.mark.parametrize("total", [3, 64, 345])
def test_a_surrogate_trains_at_the_rates_of_two_lines(total: int) -> None:
    """The lower one of 0.01 + 0.8 s / T and 0.8 (1 - s / T) / 3, to the last bit of a float32."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.2025)
    schedule = triangle(optimizer, total, start=0.01 / 0.2025, peak=0.240625, end=0.0)
    for step in range(total):
        rate = 0.2 * min(0.05 + step / total / 0.25, (1 - step / total) / 0.75)
        found = optimizer.param_groups[0]["lr"]
        assert torch.equal(torch.tensor(found), torch.tensor(rate))
        optimizer.step()
        schedule.step()
