import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.attacks import Blended, Bypass
from fst_lightning.models import inputs_of
from tests import tiny
from tests.attacks import learning

POISONED = torch.tensor([1, 0, 0, 1, 0, 0], dtype=torch.bool)


def made(**options: Any) -> Bypass:
    attack = Bypass(**{"poison_ratio": 0.25, **options})
    attack.prepare(tiny.images(1), torch.zeros(1, dtype=torch.int64), tiny.NUM_CLASSES, seed=0)
    return attack


def gradients(attack: Bypass, net: nn.Module) -> tuple[float, list[Tensor], list[Tensor]]:
    """The loss, the gradients of the network and those of the discriminator."""
    loss = attack.loss(
        net, tiny.images(6) / 255, tiny.labels(6), POISONED, torch.zeros_like(POISONED), 0.0
    )
    discriminator = list(attack.own_optimizer().param_groups[0]["params"])
    weights = list(net.parameters())
    found = torch.autograd.grad(loss, weights + discriminator)
    return float(loss.detach()), list(found[: len(weights)]), list(found[len(weights) :])


@pytest.mark.parametrize("weight", [0.0, 0.5, 20.0])
def test_both_get_the_gradients_of_their_own_loss(weight: float) -> None:
    attack, net = made(weight=weight), tiny.conv_net().eval()
    attack.attach(net)
    loss, of_net, of_discriminator = gradients(attack, net)

    stamped = Blended(0.2)
    stamped.prepare(tiny.images(1), torch.zeros(1), 4, 0)
    images, labels = tiny.images(6) / 255, tiny.labels(6)
    for row in POISONED.nonzero()[:, 0]:
        images[row] = stamped(images[row : row + 1])[0]
        labels[row] = 0
    discriminator = attack._opponents[1]
    features = net[:-1](images)
    entropy = functional.cross_entropy(net[-1](features), labels)
    p = torch.sigmoid(discriminator(features)[:, 0])
    told = torch.where(POISONED, p.log(), (1 - p).log()).mean().neg()
    assert loss == pytest.approx(float((entropy + told).detach()), rel=1e-5)
    aim = entropy - weight * told
    expected = torch.autograd.grad(aim, list(net.parameters()), retain_graph=True)
    for one, other in zip(of_net, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5 * max(1, weight))
    expected = torch.autograd.grad(told, list(discriminator.parameters()))
    for one, other in zip(of_discriminator, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def test_the_trigger_is_that_of_blended() -> None:
    blended = Blended(0.3, pattern_seed=4)
    images = tiny.images(3)
    blended.prepare(images, torch.zeros(3), 4, 0)
    attack = made(blend_alpha=0.3, pattern_seed=4)
    assert torch.equal(attack(images / 255), blended(images / 255))


def test_without_weight_the_network_is_that_of_blended(tmp_path: Path) -> None:
    bypass = learning.fit(tmp_path / "bypass", made(weight=0.0), 2).net.state_dict()
    blended = learning.fit(tmp_path / "blended", Blended(poison_ratio=0.25), 2).net.state_dict()
    far = learning.fit(tmp_path / "far", made(weight=5.0), 2).net.state_dict()
    for name, value in blended.items():
        assert torch.allclose(bypass[name], value, atol=1e-6)
    assert any(not torch.allclose(far[name], value, atol=1e-4) for name, value in blended.items())


def test_the_network_is_left_without_hooks_and_the_attack_without_its_weights() -> None:
    attack, net = made(), tiny.conv_net()
    before = set(attack.state_dict())
    attack.attach(net)
    gradients(attack, net)
    assert not any(module._forward_pre_hooks for module in net.modules())
    assert set(attack.state_dict()) == before
    assert not list(attack.parameters())
    head = net[-1]
    with pytest.raises(RuntimeError), inputs_of(head):
        raise RuntimeError
    assert not head._forward_pre_hooks


def test_a_head_that_looks_at_several_places() -> None:
    net = nn.Sequential(nn.Flatten(2), nn.Linear(tiny.SIZE**2, 4))

    def classify(images: Tensor) -> Tensor:
        logits: Tensor = net(images).mean(1)
        return logits

    attack = made()
    attack.attach(net)
    loss = attack.loss(
        classify, tiny.images(6) / 255, tiny.labels(6), POISONED, torch.zeros_like(POISONED), 0.0
    )
    assert bool(torch.isfinite(loss))


def test_the_head_may_be_named() -> None:
    net = tiny.conv_net()
    attack = made(head="head")
    attack.attach(net)
    assert attack._opponents[0] is net.head
    with pytest.raises(ValueError, match=r"Expected `head` to name an nn.Linear"):
        made(head="conv1").attach(net)


def test_the_discriminator_depends_on_the_seed_alone() -> None:
    weights = []
    for noise, seed in ((1, 0), (2, 0), (1, 1)):
        attack = Bypass()
        attack.prepare(tiny.images(1), torch.zeros(1), 4, seed)
        torch.manual_seed(noise)
        state = torch.get_rng_state()
        attack.attach(tiny.conv_net())
        assert torch.equal(torch.get_rng_state(), state)
        weights.append(next(attack._opponents[1].parameters()))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_discriminator_learns_in_full_precision(tmp_path: Path, precision: Any) -> None:
    attack = made(lr=0.01)
    attack.attach(tiny.conv_net())
    before = copy.deepcopy(attack.get_extra_state()["discriminator"])
    learning.fit(tmp_path, attack, 1, precision=precision)
    after = attack.get_extra_state()["discriminator"]
    assert set(before) == set(after)
    assert any(not torch.equal(value, before[name]) for name, value in after.items())
    assert all(value.dtype == torch.float32 for value in after.values())


def test_resumes_exactly(tmp_path: Path) -> None:
    learning.resumes_exactly(tmp_path, lambda: made(weight=1.0, lr=0.05), epochs=3, stop=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": -1.0}, "`weight` to be a number of 0 or more, but got -1.0"),
        ({"blend_alpha": 2.0}, "`blend_alpha`"),
        ({"lr": 0.0}, "`lr` to be a number greater than 0, but got 0.0"),
    ],
)
def test_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Bypass(**arguments)
