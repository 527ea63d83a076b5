import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fst_lightning.attacks import InputAware
from fst_lightning.attacks.input_aware import diversity_loss
from tests import tiny
from tests.attacks import learning

CPU = torch.device("cpu")


def made(**options: Any) -> InputAware:
    return InputAware(**{"width": 4, "mask_epochs": 1, "poison_ratio": 0.25, **options})


def shapes(count: int, size: int = 16) -> Tensor:
    """Bright rectangles at random places: images that differ."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 60, (count, 3, size, size), generator=generator)
    for image in images:
        top, left = torch.randint(0, size // 2, (2,), generator=generator).tolist()
        color = torch.randint(100, 256, (3, 1, 1), generator=generator)
        image[:, top : top + size // 2, left : left + size // 2] = color
    return images.to(torch.uint8)


@pytest.mark.parametrize("density", [0.032, 0.1])
def test_masks_are_as_dense_as_asked_for(density: float) -> None:
    images = shapes(64)
    attack = made(mask_density=density, mask_epochs=60, width=8)
    with torch.no_grad():
        assert float(attack.masks(images / 255).mean()) > 0.15
        attack.fit(images, tiny.labels(64), 4, 0, CPU)
        masks = attack.masks(images / 255)
    assert float(masks.mean()) == pytest.approx(density, rel=0.4)
    # They differ between images, and most of their values are nearly 0 or 1.
    assert float((masks - masks.roll(1, 0)).abs().mean()) > 0.1 * density
    assert float(((masks < 0.1) | (masks > 0.9)).float().mean()) > 0.8
    assert not any(p.requires_grad for p in attack.mask_net.parameters())


def test_a_fit_depends_on_its_seed_alone() -> None:
    images, labels = tiny.images(20), tiny.labels(20)
    attacks = []
    for noise in (1, 2):
        attack = made()
        attack.prepare(images, labels, 4, seed=5)
        torch.manual_seed(noise)
        state = torch.get_rng_state()
        attack.fit(images, labels, 4, 5, CPU)
        assert torch.equal(torch.get_rng_state(), state)
        attacks.append(attack)
    one, two = (attack.masks(images / 255) for attack in attacks)
    assert torch.equal(one, two)
    attacks[0].prepare(images, labels, 4, seed=6)
    attacks[0].fit(images, labels, 4, 6, CPU)
    assert not torch.equal(attacks[0].masks(images / 255), one)


def test_the_trigger_and_that_of_another_image() -> None:
    attack, images = made(), tiny.images(5) / 255
    masks, patterns = attack.masks(images), attack.patterns(images)
    assert masks.shape == (5, 1, tiny.SIZE, tiny.SIZE)
    assert bool(((patterns >= 0) & (patterns <= 1)).all())
    x, m, g = (t.detach().double().numpy() for t in (images, masks, patterns))
    attacked, crossed = attack.trigger(images), attack.cover(images)
    for row in range(5):
        own = (1 - m[row]) * x[row] + m[row] * g[row]
        others = (1 - m[row - 1]) * x[row] + m[row - 1] * g[row - 1]
        assert np.abs(attacked[row].detach().numpy() - own).max() < 1e-6
        assert np.abs(crossed[row].detach().numpy() - others).max() < 1e-6
    assert not torch.allclose(attacked, crossed, atol=1e-3)
    assert torch.equal(attack.cover(images[:1]), images[:1])


def test_diversity_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, 5, 5, generator=generator)
    maps = torch.rand(4, 1, 5, 5, generator=generator)
    total = 0.0
    for row in range(4):
        far = math.sqrt(float((images[row] - images[row - 1]).square().mean()))
        near = math.sqrt(float((maps[row] - maps[row - 1]).square().mean()))
        total += far / (near + 1e-3)
    assert float(diversity_loss(images, maps)) == pytest.approx(total / 4, rel=1e-5)


def test_diversity_of_equal_maps_has_a_gradient() -> None:
    images = torch.rand(3, 1, 4, 4)
    for count in (1, 3):
        maps = torch.full((count, 1, 4, 4), 0.5, requires_grad=True)
        diversity_loss(images[:count], maps).backward()  # type: ignore[no-untyped-call]
        assert maps.grad is not None
        assert bool(torch.isfinite(maps.grad).all())


def test_the_loss_is_cross_entropy_and_diversity() -> None:
    attack, images, labels = made(diversity=0.7), tiny.images(6) / 255, tiny.labels(6)
    net = tiny.linear_net(3 * tiny.SIZE**2)
    poisoned = torch.tensor([1, 0, 0, 1, 0, 0], dtype=torch.bool)
    cover = torch.tensor([0, 1, 0, 0, 0, 0], dtype=torch.bool)
    seen, crossed = attack.trigger(images), attack.cover(images)
    expected = 0.7 * float(diversity_loss(images, attack.patterns(images)).detach())
    for row in range(6):
        image = seen[row] if poisoned[row] else crossed[row] if cover[row] else images[row]
        label = 0 if poisoned[row] else int(labels[row])
        expected -= float(net(image[None])[0].detach().log_softmax(0)[label]) / 6
    loss = attack.loss(net, images, labels, poisoned, cover, 0.0)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in attack.pattern_net.parameters())
    assert all(p.grad is None for p in attack.mask_net.parameters())


def test_preparing_again_keeps_what_is_trained() -> None:
    attack = made()
    images, labels = tiny.images(8), tiny.labels(8)
    attack.prepare(images, labels, 4, seed=3)
    with torch.no_grad():
        attack.pattern_net.out.weight.fill_(0.5)
    trained = attack.trigger(images / 255)
    attack.prepare(images, labels, 4, seed=3)
    assert torch.equal(attack.trigger(images / 255), trained)
    attack.prepare(images[:, :1], labels, 4, seed=3)
    assert attack(images[:, :1] / 255).shape == (8, 1, tiny.SIZE, tiny.SIZE)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_learns_the_patterns_and_leaves_the_masks(tmp_path: Path, precision: Any) -> None:
    attack = made()
    attack.fit_once(tiny.images(40), tiny.labels(40), 4, 0, CPU)
    before = {name: value.clone() for name, value in attack.named_parameters()}
    learning.fit(tmp_path, attack, 1, precision=precision)
    for name, value in attack.named_parameters():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name]) == name.startswith("mask_net")


def test_resumes_exactly(tmp_path: Path) -> None:
    learning.resumes_exactly(tmp_path, made, epochs=3, stop=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask_density": 0.0}, r"`mask_density` to be a number in \(0, 1\], but got 0.0"),
        ({"mask_epochs": 0}, "`mask_epochs` to be a whole number of 1 or more, but got 0"),
        ({"diversity": -1.0}, "`diversity` to be a number of 0 or more, but got -1.0"),
        ({"lr": 0.0}, "`lr` to be a number greater than 0, but got 0.0"),
        ({"cover_ratio": 2.0}, r"`cover_ratio` to be a number in \[0, 1\], but got 2.0"),
    ],
)
def test_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**arguments)
