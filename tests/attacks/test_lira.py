from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fst_lightning.attacks import LIRA
from tests import tiny
from tests.attacks import learning


def made(**options: Any) -> LIRA:
    return LIRA(**{"width": 4, "poison_ratio": 0.25, **options})


@pytest.mark.parametrize("eps", [0.01, 0.1, 1.0])
def test_no_value_changes_by_more_than_eps(eps: float) -> None:
    attack, images = made(eps=eps), tiny.images(6, 16) / 255
    with torch.no_grad():
        attack.generator.out.weight.mul_(1000)  # Its noise is then nearly -1 or 1 everywhere.
        change = (attack(images) - images).abs()
        room = torch.maximum(images, 1 - images).clamp(max=eps)
    assert bool((change <= room + 1e-6).all())
    assert float(change.max()) > 0.95 * float(room.max())


def test_the_noise_is_added_and_clipped() -> None:
    attack, images = made(eps=0.3), tiny.images(3, 16) / 255
    noise = attack.generator(images).detach().double().numpy()
    expected = (images.double().numpy() + 0.3 * noise).clip(0, 1)
    assert abs(attack.trigger(images).detach().numpy() - expected).max() < 1e-6


def test_the_loss_by_hand() -> None:
    attack, images, labels = made(clean_weight=0.3), tiny.images(5) / 255, tiny.labels(5)
    net = tiny.linear_net(3 * tiny.SIZE**2)
    poisoned = torch.tensor([True, False, False, True, False])
    clean, triggered = 0.0, 0.0
    for row in range(5):
        clean -= float(net(images[row : row + 1])[0].log_softmax(0)[labels[row]].detach()) / 5
    for row in (0, 3):
        logits = net(attack.trigger(images[row : row + 1]))[0]
        triggered -= float(logits.log_softmax(0)[0].detach()) / 2
    loss = attack.loss(net, images, labels, poisoned, torch.zeros_like(poisoned), 0.0)
    assert float(loss.detach()) == pytest.approx(0.3 * clean + 0.7 * triggered, rel=1e-5)


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_the_generator_gets_gradients_in_the_joint_stage_alone(fraction: float) -> None:
    attack = made(joint_fraction=fraction)
    images, labels = tiny.images(6) / 255, tiny.labels(6)
    net = tiny.conv_net()
    poisoned = torch.ones(6, dtype=torch.bool)
    attack.attach(net)
    for epoch in range(4):
        attack.begin_epoch(epoch, 4)
        before = [parameter.clone() for parameter in attack.generator.parameters()]
        loss = attack.loss(net, images, labels, poisoned, ~poisoned, 0.0)
        loss.backward()  # type: ignore[no-untyped-call]
        learns = epoch < 4 * fraction
        assert all((p.grad is not None) == learns for p in attack.generator.parameters())
        attack.after_step()
        after = list(attack.generator.parameters())
        moved = [not torch.equal(*pair) for pair in zip(before, after, strict=True)]
        assert all(moved) == any(moved) == learns
        assert all(p.grad is not None for p in net.parameters())
        net.zero_grad()


def test_the_generator_lowers_the_triggered_loss_of_a_fixed_classifier() -> None:
    attack = made(eps=0.4, lr=0.02, width=8)
    images, labels = tiny.images(16) / 255, tiny.labels(16)
    net = tiny.linear_net(3 * tiny.SIZE**2).requires_grad_(False)
    poisoned = torch.ones(16, dtype=torch.bool)
    attack.attach(nn.Identity())
    losses = []
    for _ in range(40):
        loss = attack.loss(net, images, labels, poisoned, ~poisoned, 0.0)
        losses.append(float(loss.detach()))
        loss.backward()  # type: ignore[no-untyped-call]
        attack.after_step()
    assert losses[-1] < 0.8 * losses[0]
    assert bool((net(attack(images)).argmax(1) == 0).all())


def test_a_batch_without_poisoned_rows() -> None:
    attack, images, labels = made(), tiny.images(4) / 255, tiny.labels(4)
    net = tiny.conv_net()
    attack.attach(net)
    none = torch.zeros(4, dtype=torch.bool)
    loss = attack.loss(net, images, labels, none, none, 0.0)
    loss.backward()  # type: ignore[no-untyped-call]
    attack.after_step()
    assert bool(torch.isfinite(loss))
    assert all(bool(torch.isfinite(p).all()) for p in attack.parameters())


def test_preparing_again_keeps_what_is_trained() -> None:
    attack = made()
    images, labels = tiny.images(8), tiny.labels(8)
    attack.prepare(images, labels, 4, seed=3)
    fresh = attack.trigger(images / 255)
    with torch.no_grad():
        attack.generator.out.weight.fill_(0.5)
    trained = attack.trigger(images / 255)
    attack.prepare(images, labels, 4, seed=3)
    assert torch.equal(attack.trigger(images / 255), trained)
    attack.prepare(images, labels, 4, seed=4)
    assert not torch.equal(attack.trigger(images / 255), fresh)
    again = made()
    again.prepare(images, labels, 4, seed=3)
    assert torch.equal(again.trigger(images / 255), fresh)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_trains_in_full_precision(tmp_path: Path, precision: Any) -> None:
    attack = made(joint_fraction=1.0)
    before = {name: value.clone() for name, value in attack.named_parameters()}
    learning.fit(tmp_path, attack, 1, precision=precision)
    for name, value in attack.named_parameters():
        assert value.dtype == torch.float32
        assert not torch.equal(value, before[name])
        assert bool(torch.isfinite(value).all())


@pytest.mark.parametrize("stop", [1, 2])
def test_resumes_exactly_in_both_stages(tmp_path: Path, stop: int) -> None:
    def make() -> LIRA:
        return made(joint_fraction=0.5)

    learning.resumes_exactly(tmp_path, make, epochs=3, stop=stop)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eps": 0.0}, r"`eps` to be a number in \(0, 1\], but got 0.0"),
        ({"eps": 1.5}, "`eps`"),
        ({"clean_weight": -0.1}, r"`clean_weight` to be a number in \[0, 1\], but got -0.1"),
        ({"joint_fraction": 2.0}, r"`joint_fraction` to be a number in \[0, 1\], but got 2.0"),
        ({"lr": 0.0}, "`lr` to be a number greater than 0, but got 0.0"),
    ],
)
def test_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**arguments)
