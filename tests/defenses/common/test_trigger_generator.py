"""Triggered images from decoupled features, and the two defenses that tune with them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.defenses import BTIDBF, CleanData, PathAwareMinimization
from fst_lightning.defenses.common import trigger_generator
from fst_lightning.defenses.common.features import features_of
from fst_lightning.defenses.common.trigger_generator import TriggerGenerator
from tests import tiny
from tests.defenses.drive import drive

SMALL: dict[str, Any] = {"mask_steps": 3, "generator_epochs": 1, "generator_width": 4}
CLASSES, SIZE = 3, 8


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clean_data(count: int = 24) -> CleanData:
    data = tiny.rows(count)
    return CleanData(data.images, data.labels, mean=[0.5] * 3, std=[0.25] * 3)


def weights(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


class Planted(nn.Module):
    """Three benign features, the brightness of three rows, and one of a bright corner.

    The corner's feature is small on clean images, and pulls to class 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(CLASSES + 1, CLASSES)
        with torch.no_grad():
            self.fc.weight.copy_(torch.cat([8 * torch.eye(3), torch.tensor([[40.0], [0], [0]])], 1))
            self.fc.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        rows = images[:, :, :CLASSES].mean((1, 3))
        corner = torch.relu(images[:, :, -2:, -2:].mean((1, 2, 3)) - 0.2)
        logits: Tensor = self.fc(torch.cat([rows, corner[:, None]], 1))
        return logits


def planted_data() -> CleanData:
    """The corner is dark in all classes, and a little less so in those that are not class 0."""
    labels = torch.arange(96) % CLASSES
    images = 0.1 * torch.rand(96, 3, SIZE, SIZE, generator=seeded())
    images[torch.arange(96), :, labels] += 0.6
    images[labels != 0, :, -2:, -2:] += 0.2
    return CleanData(images, labels, mean=[0.0] * 3, std=[1.0] * 3)


def test_the_trigger_lies_in_the_feature_that_the_clean_task_does_without() -> None:
    net, clean = Planted(), planted_data()
    defense = BTIDBF(
        rounds=1,
        mask_steps=200,
        generator_epochs=40,
        generator_lr=5e-3,
        image_bound=0.02,
        feature_bound=0.1,
    )
    defense.prepare(net, seeded())
    defense.begin_epoch(net, clean, 0, seeded())
    assert bool((defense.mask[:CLASSES] > 0.9).all())
    assert float(defense.mask[CLASSES]) < 0.1
    assert defense.findings()["target"] == [0]
    assert defense.findings()["success"][0] > 0.9
    changed = defense.triggered(clean.images) - clean.images
    assert float(changed.square().mean()) < 0.04  # twice the bound at most
    with torch.no_grad():
        hits = net(clean.images + changed).argmax(1) == 0
    assert float(hits[clean.labels != 0].float().mean()) == pytest.approx(
        defense.findings()["success"][0], abs=1e-4
    )


def test_a_canvas_holds_what_convolutions_cannot_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of noise is no function of what surrounds a pixel, the same everywhere."""
    images = torch.rand(32, 3, SIZE, SIZE, generator=seeded(1))
    blended = torch.lerp(images, torch.rand(3, SIZE, SIZE, generator=seeded(2)), 0.3)
    left = []
    for speed in (trigger_generator._CANVAS_SPEED, 0.0):
        monkeypatch.setattr(trigger_generator, "_CANVAS_SPEED", speed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            trigger = TriggerGenerator((3, SIZE, SIZE))
        optimizer = torch.optim.Adam(trigger.parameters(), lr=2e-3, betas=(0.5, 0.9))
        for _ in range(150):
            optimizer.zero_grad()
            loss = functional.mse_loss(trigger(images), blended)
            torch.autograd.backward(loss)
            optimizer.step()
        left.append(float(loss.detach() / functional.mse_loss(images, blended)))
    assert left[0] < 0.05
    assert left[1] > 0.2


@pytest.mark.parametrize("size", [(3, 3), (5, 7), (12, 12)])
def test_a_generator_starts_close_to_the_identity_and_gives_images(size: tuple[int, int]) -> None:
    images = torch.rand(4, 3, *size, generator=seeded())
    images[0], images[1] = 0, 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trigger = TriggerGenerator((3, *size), width=4)
    with torch.no_grad():
        changed = trigger(images)
        alone = trigger(images[2:3])
        for parameter in trigger.parameters():
            parameter.mul_(20)
        far = trigger(images)
    assert float((changed - images).abs().max()) < 0.15
    assert torch.allclose(changed[2:3], alone, atol=1e-6)
    assert 0 <= float(far.min()) <= float(far.max()) <= 1


def test_features_are_what_the_head_gets() -> None:
    net = tiny.conv_net().eval()
    images = torch.rand(5, 3, 8, 8, generator=seeded())
    head = net.get_submodule("head")
    assert isinstance(head, nn.Linear)
    expected = nn.Sequential(*list(net.children())[:-1])(images)
    assert torch.equal(features_of(net, head, images), expected)
    assert not head._forward_pre_hooks


def test_a_head_that_gets_no_vector_an_image_is_refused() -> None:
    net = nn.Linear(8, 2)
    with pytest.raises(ValueError, match=r"called once with features \(N, d\) of N = 5"):
        features_of(net, net, torch.zeros(5, 3, 8))


def test_rounds_come_at_their_epochs_and_find_a_target_each() -> None:
    net, clean = tiny.conv_net(), clean_data()
    defense = BTIDBF(rounds=2, round_epochs=3, **SMALL)
    defense.prepare(net, seeded())
    images = next(clean.batches(8))[0]
    assert torch.equal(defense.triggered(images), images)
    found = []
    for epoch in range(8):
        defense.begin_epoch(net, clean, epoch, seeded(epoch))
        found.append(len(defense.rates))
    assert found == [1, 1, 1, 2, 2, 2, 2, 2]
    assert len(defense.findings()["target"]) == 2


def test_an_inversion_leaves_network_modes_and_global_random_numbers_alone() -> None:
    net, clean = tiny.conv_net(dropout=0.5).train(), clean_data()
    kept = {name: value.clone() for name, value in net.state_dict().items()}
    defense, again = BTIDBF(**SMALL), BTIDBF(**SMALL)
    state = torch.get_rng_state()
    for one in (defense, again):
        one.prepare(net, seeded())
        one.begin_epoch(net, clean, 0, seeded(3))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(defense.generator_weights, again.generator_weights)
    assert all(module.training for module in net.modules())
    assert all(torch.equal(value, kept[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_triggers_come_back_with_the_state_of_the_defense() -> None:
    net, clean = tiny.conv_net(), clean_data()
    defense, other = BTIDBF(**SMALL), BTIDBF(**SMALL)
    defense.prepare(net, seeded())
    defense.begin_epoch(net, clean, 0, seeded())
    other.prepare(net, seeded())
    other.load_state_dict(defense.state_dict())
    images = next(clean.batches(8))[0]
    assert not torch.equal(other.triggered(images), images)
    assert torch.equal(other.triggered(images), defense.triggered(images))
    assert other.findings() == defense.findings()


def test_the_loss_is_on_clean_and_triggered_images_and_on_their_features() -> None:
    net, clean = tiny.conv_net(), clean_data()
    defense = BTIDBF(feature_weight=0.5, stamp_ratio=0.25, **SMALL)
    defense.prepare(net, seeded())
    defense.begin_epoch(net, clean, 0, seeded())
    net.eval()
    images, labels = next(clean.batches(8))
    triggered = defense.triggered(images[:2])
    features = nn.Sequential(*list(net.children())[:-1])
    apart = (features(triggered) - features(images[:2])).square().mean()
    each = [
        functional.cross_entropy(net(x[None]), y[None])
        for x, y in zip([*triggered, *images], [*labels[:2], *labels], strict=True)
    ]
    expected = torch.stack(each).mean() + 0.5 * apart
    found = defense.loss(net, images, labels)
    assert torch.allclose(found, expected, atol=1e-5)
    assert float(apart.detach()) > 1e-6


def test_a_path_aware_step_uses_the_gradient_at_the_moved_weights() -> None:
    net, clean = tiny.linear_net(3 * 8 * 8), clean_data()
    defense = PathAwareMinimization(rho=0.7, stamp_ratio=0.0)
    defense.prepare(net, seeded())
    came_in = weights(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=seeded()) / 10)
    now = weights(net)
    images, labels = next(clean.batches(8))
    torch.autograd.backward(defense.loss(net, images, labels))
    defense.after_backward()
    moved = (now + 0.7 * (came_in - now) / (came_in - now).norm()).requires_grad_()
    weight, bias = (p.shape for p in net.parameters())
    matrix, offset = moved.split([weight.numel(), bias.numel()])
    loss = functional.cross_entropy(images.flatten(1) @ matrix.view(weight).T + offset, labels)
    (expected,) = torch.autograd.grad(loss, moved)
    gradient = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    assert torch.allclose(gradient, expected, atol=1e-6)
    assert torch.equal(weights(net), now)


def test_with_no_way_to_go_and_nothing_triggered_it_is_fine_tuning() -> None:
    net, other = tiny.conv_net(), tiny.conv_net()
    drive(PathAwareMinimization(rho=0.0, stamp_ratio=0.0, **SMALL), net, clean_data(), epochs=2)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    other.train()
    for epoch in range(2):
        for images, labels in clean_data().batches(8, seeded(1000 + epoch)):
            optimizer.zero_grad()
            torch.autograd.backward(functional.cross_entropy(other(images), labels))
            optimizer.step()
    assert torch.allclose(weights(net), weights(other), atol=1e-6)


@pytest.mark.parametrize("argument", ["rho", "rounds", "generator_lr", "image_bound", "batch_size"])
def test_arguments_out_of_range_are_refused(argument: str) -> None:
    with pytest.raises(ValueError, match=f"Expected `{argument}`"):
        PathAwareMinimization(**{argument: -1})  # type: ignore[arg-type]
