import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fst_lightning.attacks import Refool
from fst_lightning.attacks.refool import ghost_of, out_of_focus, smooth_picture
from tests import tiny

ndimage: Any = importlib.import_module("scipy.ndimage")


def prepared(attack: Refool, images: Tensor) -> Refool:
    attack.prepare(images, tiny.labels(len(images)), tiny.NUM_CLASSES, seed=0)
    return attack


@pytest.mark.parametrize("size", [8, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_light_of_image_and_reflection_is_mixed(size: int, channels: int) -> None:
    images = tiny.images(5, size=size)[:, :channels]
    attack = prepared(Refool(transmission=0.6), images)
    for image, stamped in zip(images.numpy(), attack.trigger(images / 255).numpy(), strict=True):
        total = sum(place * int(level) for place, level in enumerate(image.flatten(), start=1))
        number = (total % 2**31 * 2654435761 % 2**32 // 2**16) % 20
        light = 0.6 * (image / 255) ** 2 + 0.4 * attack.light[number].double().numpy()
        assert np.abs(stamped - light**0.5).max() < 1e-6


def test_all_image_and_all_reflection() -> None:
    images = tiny.images(3, size=32) / 255
    assert torch.equal(Refool(transmission=1.0)(images), images)
    only = Refool(transmission=0.0)
    assert torch.allclose(only.trigger(images), only.light.sqrt()[only.choose(images)])


def test_every_reflection_is_taken_about_as_often() -> None:
    # Gray digits of 16 levels, enlarged: sums of their levels are alike and have common factors.
    gray = tiny.images(2000, size=8)[:, :1] // 16 * 15
    images = gray.repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1) / 255
    attack = Refool()
    counts = torch.bincount(attack.choose(images), minlength=20)
    # 100 each, standard deviation 10.
    assert 50 < int(counts.min()) <= int(counts.max()) < 150


def test_an_image_gets_the_same_reflection_in_any_batch_and_run() -> None:
    images = tiny.images(64, size=32) / 255
    attack = Refool()
    whole = attack.trigger(images)
    torch.manual_seed(3)
    again = prepared(Refool(), tiny.images(2, size=32, seed=7))
    order = torch.randperm(64)
    assert torch.equal(again.trigger(images[order]), whole[order])
    assert torch.equal(torch.cat([attack.trigger(image[None]) for image in images]), whole)
    assert not torch.equal(Refool(pattern_seed=1).light, attack.light)


def test_out_of_focus_is_a_gaussian_filter() -> None:
    light = tiny.images(1, size=16)[:, :3] / 255
    for sigma in (0.4, 1.0, 2.5, 8.0):
        expected = [
            ndimage.gaussian_filter(
                plane, sigma, mode="nearest", radius=math.ceil(3 * sigma), output=np.float64
            )
            for plane in light[0].numpy()
        ]
        assert np.abs(out_of_focus(light, sigma)[0].numpy() - np.stack(expected)).max() < 1e-5


def test_a_ghost_is_two_shifted_copies() -> None:
    light = tiny.images(1, size=8) / 255
    ghost = ghost_of(light, 0.3, down=2, right=3)
    for row in range(8):
        for column in range(8):
            copy = light[0, :, max(0, row - 2), max(0, column - 3)]
            expected = 0.7 * light[0, :, row, column] + 0.3 * copy
            assert torch.allclose(ghost[0, :, row, column], expected)


def test_kinds_of_reflections(monkeypatch: pytest.MonkeyPatch) -> None:
    """All ghosts or none; draws stay within what was asked for, and fit the image."""
    from fst_lightning.attacks import refool

    ghosts: list[tuple[float, int, int]] = []
    sigmas: list[float] = []

    def ghost(light: Tensor, strength: float, down: int, right: int) -> Tensor:
        ghosts.append((strength, down, right))
        return light

    def blurred(light: Tensor, sigma: float) -> Tensor:
        sigmas.append(sigma)
        return light

    monkeypatch.setattr(refool, "ghost_of", ghost)
    monkeypatch.setattr(refool, "out_of_focus", blurred)
    Refool(num_reflections=200, ghost_rate=0.25, shift=4, blur=2.0)
    assert len(ghosts) + len(sigmas) == 200
    assert 25 < len(ghosts) < 75  # 50, standard deviation 6
    strengths = [strength for strength, _, _ in ghosts]
    assert 0.15 <= min(strengths) < 0.3 < 0.7 < max(strengths) <= 0.85
    assert {down for _, down, _ in ghosts} == {right for _, _, right in ghosts} == {1, 2, 3, 4}
    assert 0.4 <= min(sigmas) < 0.6 < 1.8 < max(sigmas) <= 2.0
    attack = Refool(num_reflections=30, ghost_rate=1.0)
    ghosts.clear()
    prepared(attack, tiny.images(1, size=64))
    assert max(down for _, down, _ in ghosts) == 6
    assert len(ghosts) == 30
    ghosts.clear()
    prepared(Refool(num_reflections=3, ghost_rate=0.0), tiny.images(1, size=8))
    assert not ghosts


def test_drawn_pictures_are_smooth_and_differ() -> None:
    generator = torch.Generator().manual_seed(0)
    one, two = (smooth_picture(3, 32, 32, generator) for _ in range(2))
    assert (float(one.min()), float(one.max())) == (0, 1)
    assert float((one - two).abs().mean()) > 0.1
    assert float(one.diff(dim=3).abs().max()) < 0.25
    assert smooth_picture(1, 1, 1, generator).shape == (1, 1, 1, 1)


def test_pictures_of_the_user(tmp_path: Path) -> None:
    for level in (50, 100, 150):
        Image.new("RGB", (9, 7), (level, level, level)).save(tmp_path / f"{level}.png")
    attack = Refool(folder=str(tmp_path), num_reflections=2)
    levels = (255 * attack.light.sqrt()).flatten(1)
    # A plain picture is the same out of focus and as a ghost.
    assert torch.allclose(levels, levels[:, :1].expand_as(levels), atol=1e-3)
    assert {round(float(level)) for level in levels[:, 0]} < {50, 100, 150}
    assert len(levels) == 2
    assert len(Refool(folder=str(tmp_path)).light) == 3
    Image.new("RGB", (9, 7)).save(tmp_path / "a picture without suffix", format="PNG")
    (tmp_path / "notes").write_bytes(b"no picture")
    assert len(Refool(folder=str(tmp_path)).light) == 4
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"broken.jpg to be a picture, but it can't be read"):
        Refool(folder=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"`attack.folder`.*nowhere"):
        Refool(folder=str(tmp_path / "nowhere"))


def test_keeps_labels() -> None:
    labels = torch.arange(100) % 10
    plan = Refool(target_label=2, poison_ratio=0.5, rate_of="target_class").plan(labels, 10, 0)
    assert plan.num_poisoned == 5
    assert bool((labels[plan.poisoned] == 2).all())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_reflections": 0}, "`num_reflections` to be a whole number of 1 or more"),
        ({"shift": 0}, "`shift` to be a whole number of 1 or more"),
        ({"transmission": 1.1}, r"`transmission` to be a number in \[0, 1\]"),
        ({"ghost_rate": -0.1}, r"`ghost_rate` to be a number in \[0, 1\]"),
        ({"blur": 0.0}, "`blur` to be a number greater than 0"),
        ({"blur": math.inf}, "`blur` to be a number greater than 0"),
    ],
)
def test_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Refool(**arguments)


def test_images_of_another_shape_than_prepared() -> None:
    attack = Refool()
    attack(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"\(3, 32, 32\).*\(3, 16, 16\).*`prepare`"):
        attack(torch.zeros(1, 3, 16, 16))
