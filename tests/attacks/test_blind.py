from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fst_lightning.attacks import Blind
from fst_lightning.attacks.blind import clean_and_triggered
from tests import tiny
from tests.attacks import learning

NONE = torch.zeros(4, dtype=torch.bool)


def made(**options: Any) -> Blind:
    attack = Blind(**{"poison_ratio": 0.25, **options})
    attack.prepare(tiny.images(1), torch.zeros(1, dtype=torch.int64), 4, seed=0)
    return attack


class Constant(nn.Module):
    """Gives class 0 the same lead over three other classes on every image."""

    def __init__(self) -> None:
        super().__init__()
        self.lead = nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        first = torch.tensor([1.0, 0.0, 0.0, 0.0])
        return first * self.lead + torch.zeros(len(images), 4)

    def set(self, loss: float) -> None:
        """Lead such that an image of class 0 costs ``loss``: -log p with p = e^a / (e^a + 3)."""
        p = torch.tensor(-loss).exp()
        self.lead.data = (3 * p / (1 - p)).log()


@pytest.mark.parametrize(
    ("size", "top", "left", "zoom"), [(8, 1, 5, 1), (12, 1, 9, 1), (32, 3, 23, 1), (64, 6, 46, 2)]
)
def test_the_pattern(size: int, top: int, left: int, zoom: int) -> None:
    attack = Blind()
    attack.prepare(tiny.images(1, size), torch.zeros(1), 4, seed=0)
    gray = torch.full((2, 3, size, size), 0.5)
    drawn: list[list[float]] = [
        [1, 0, 1],
        [0.5, 1, 0.5],
        [0, 1, 0],
        [0.5, 1, 0.5],
        [1, 0, 1],
    ]
    expected = gray.clone()
    for row in range(5 * zoom):
        for column in range(3 * zoom):
            expected[:, :, top + row, left + column] = drawn[row // zoom][column // zoom]
    assert torch.equal(attack.trigger(gray), expected)


def test_the_loss_by_hand() -> None:
    attack = made(clean_weight=0.8, triggered_weight=0.3, target_label=2)
    attack.started.fill_(True)
    attack.begin_epoch(0, 1)
    images, labels = tiny.images(4) / 255, tiny.labels(4)
    net = tiny.linear_net(3 * tiny.SIZE**2)
    poisoned = torch.tensor([False, True, True, False])
    expected = 0.0
    for row in range(4):
        logits = net(images[row : row + 1])[0].detach().log_softmax(0)
        expected -= 0.8 * float(logits[labels[row]]) / 4
    for row in (1, 2):
        logits = net(attack(images[row : row + 1]))[0].detach().log_softmax(0)
        expected -= 0.3 * float(logits[2]) / 2
    loss = attack.loss(net, images, labels, poisoned, NONE, 0.0)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_smoothing_goes_into_both_terms() -> None:
    attack, images, labels = made(), tiny.images(4) / 255, tiny.labels(4)
    net = tiny.linear_net(3 * tiny.SIZE**2)
    clean, triggered = clean_and_triggered(attack, net, images, labels, ~NONE, 0.2)
    smooth = 0.8 * torch.eye(4) + 0.05
    by_hand = -(smooth[labels] * net(images).log_softmax(1)).sum(1).mean()
    assert float(clean.detach()) == pytest.approx(float(by_hand.detach()), rel=1e-5)
    by_hand = -(smooth[0] * net(attack(images)).log_softmax(1)).sum(1).mean()
    assert float(triggered.detach()) == pytest.approx(float(by_hand.detach()), rel=1e-5)


def test_without_poisoned_rows_the_second_term_is_zero() -> None:
    attack, images, labels = made(), tiny.images(4) / 255, tiny.labels(4)
    net = tiny.linear_net(3 * tiny.SIZE**2)
    _, triggered = clean_and_triggered(attack, net, images, labels, NONE, 0.0)
    assert float(triggered.detach()) == 0


def test_starts_when_the_running_mean_is_under_the_threshold() -> None:
    attack, net = made(loss_threshold=1.0, loss_window=3), Constant()
    images, labels = tiny.images(4) / 255, torch.zeros(4, dtype=torch.int64)
    losses = [2.0, 1.5, 0.4, 0.9, 0.8]
    # The means over the last three: 2, 1.75, 1.3, 0.93: under 1 after the fourth step.
    seen: list[int] = []

    def classify(pixels: Tensor) -> Tensor:
        seen.append(len(pixels))
        logits: Tensor = net(pixels)
        return logits

    attack.begin_epoch(0, 1)
    for loss in losses:
        net.set(loss)
        value = attack.loss(classify, images, labels, ~NONE, NONE, 0.0)
        # All labels are the target's: both terms are the same number.
        weight = 1.9 if bool(seen[-1] == 8) else 1.0
        assert float(value.detach()) == pytest.approx(weight * loss, rel=1e-4)
    assert seen == [4, 4, 4, 4, 8]
    net.set(3.0)
    attack.loss(classify, images, labels, ~NONE, NONE, 0.0)
    assert seen[-1] == 8  # It does not stop again.


def test_what_it_has_seen_comes_back_with_its_state() -> None:
    attack, net = made(loss_window=2), Constant()
    images, labels = tiny.images(4) / 255, torch.zeros(4, dtype=torch.int64)
    for loss in (1.5, 0.9):
        net.set(loss)
        attack.loss(net, images, labels, ~NONE, NONE, 0.0)
    other = made(loss_window=2)
    other.load_state_dict(attack.state_dict())
    other.begin_epoch(1, 2)
    net.set(0.9)
    for one in (attack, other):  # (0.9 + 0.9) / 2 < 1
        values = [one.loss(net, images, labels, ~NONE, NONE, 0.0).detach() for _ in range(2)]
        assert torch.stack(values).tolist() == pytest.approx([0.9, 1.9 * 0.9])


@pytest.mark.parametrize("threshold", [0.01, 1.3, 100.0])
def test_resumes_exactly(tmp_path: Path, threshold: float) -> None:
    def make() -> Blind:
        return made(loss_threshold=threshold, loss_window=5)

    learning.resumes_exactly(tmp_path, make, epochs=3, stop=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clean_weight": -1.0}, "`clean_weight` to be a number of 0 or more, but got -1.0"),
        (
            {"triggered_weight": -1.0},
            "`triggered_weight` to be a number of 0 or more, but got -1.0",
        ),
        ({"loss_threshold": 0.0}, "`loss_threshold` to be a number greater than 0, but got 0.0"),
        ({"loss_window": 0}, "`loss_window` to be a whole number of 1 or more, but got 0"),
    ],
)
def test_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Blind(**arguments)


def test_refuses_images_that_do_not_fit() -> None:
    attack = Blind()
    attack(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"\(C, 32, 32\).*\(3, 8, 8\); call `prepare`"):
        attack(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="at least 5 x 3 pixels for the pattern, but got 4 x 4"):
        Blind().prepare(tiny.images(1, 4), torch.zeros(1), 4, seed=0)
