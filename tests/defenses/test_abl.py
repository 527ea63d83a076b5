"""Anti-backdoor learning against plain loops, and on rows that are known."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from fst_lightning.defenses import AntiBackdoorLearning, PoisonedData
from fst_lightning.defenses.abl import losses_of
from tests.defenses.delivered import delivered, trained


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_losses_are_those_of_single_images() -> None:
    data, _ = delivered(count=9, poisoned=1)
    net = trained(data, steps=3)
    losses = losses_of(net, data, batch_size=4)
    for row, (image, label) in enumerate(data.batches(1)):
        assert losses[row] == pytest.approx(
            float(functional.cross_entropy(net(image), label).detach()), abs=1e-5
        )


def test_the_rows_of_least_loss_are_isolated() -> None:
    data, _ = delivered()
    defense = AntiBackdoorLearning(isolation_ratio=0.1, isolation_epochs=2, batch_size=16)
    found = defense.suspects(trained(data, 1), data, seeded())
    assert int(found.sum()) == 9
    assert defense.losses[found].max() <= defense.losses[~found].min()


def test_the_loss_is_held_where_it_is_told() -> None:
    """On the batches it was trained on, all rows a batch; without the flood it goes to zero."""
    data, _ = delivered()
    ends = []
    for gamma in (0.6, 0.0):
        defense = AntiBackdoorLearning(
            gamma=gamma, isolation_epochs=150, isolation_lr=0.05, batch_size=90
        )
        defense.suspects(trained(data, 1), data, seeded())
        ends.append(float(defense.losses.mean()))
    assert ends[0] == pytest.approx(0.6, abs=0.15)
    assert ends[1] < 0.05


def test_isolation_leaves_the_network_that_came_in_alone() -> None:
    data, _ = delivered()
    net = trained(data, 3)
    state = copy.deepcopy(net.state_dict())
    AntiBackdoorLearning(isolation_epochs=1).suspects(net, data, seeded())
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_unlearning_is_a_plain_loop() -> None:
    """Descent on the others, ascent on the isolated rows, in one step a batch."""
    data, truth = delivered(count=30, poisoned=4)
    net = trained(data, 20)
    other = copy.deepcopy(net)
    defense = AntiBackdoorLearning(unlearn_epochs=2, unlearn_lr=0.01, batch_size=4)
    made = defense.retrain(lambda: net, data, truth, seeded(7), lambda fresh, rows: fresh)
    assert made is net
    numbers = seeded(7)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.01, momentum=0.9)
    isolated, kept = data.subset(truth), data.subset(~truth)
    for _ in range(2):
        second = next(isolated.batches(4, numbers))
        first = next(kept.batches(4, numbers))
        optimizer.zero_grad()
        loss = functional.cross_entropy(other(first[0]), first[1])
        loss = loss - functional.cross_entropy(other(second[0]), second[1])
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(other.parameters(), 1.0)
        optimizer.step()
    for one, two in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two)


def test_what_was_isolated_is_unlearned_and_the_rest_is_not() -> None:
    data, truth = delivered()
    net = trained(data)
    defense = AntiBackdoorLearning(unlearn_epochs=200, unlearn_lr=0.02, batch_size=32)
    defense.suspected = truth
    seen: list[PoisonedData] = []

    def fit(fresh: nn.Module, rows: PoisonedData) -> nn.Module:
        seen.append(rows)
        return fresh

    defense.retrain(lambda: net, data, truth, seeded(), fit)
    before, after = defense.unlearned.tolist()
    assert len(seen[0]) == int((~truth).sum())
    assert (before, after) == (1.0, pytest.approx(0.0, abs=0.2))
    (images, labels), *_ = data.subset(~truth).batches(90)
    assert float((net(images).argmax(1) == labels).float().mean()) > 0.9
    assert defense.findings()["isolated_right"] == [before, round(after, 4)]


@pytest.mark.parametrize(
    "arguments",
    [
        {"gamma": -1},
        {"isolation_ratio": 0},
        {"isolation_ratio": 1},
        {"isolation_epochs": 0},
        {"isolation_lr": 0},
        {"unlearn_epochs": -1},
        {"unlearn_lr": 0},
        {"batch_size": 1},
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"Expected `{next(iter(arguments))}`"):
        AntiBackdoorLearning(**arguments)
