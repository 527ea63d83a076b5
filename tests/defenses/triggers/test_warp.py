"""Random warps: how far they move pixels, and what they leave alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fst_lightning.defenses.triggers import WarpTriggers


def warped(images: Tensor, strength: float, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    source = WarpTriggers(1.0, strength)
    return source.forward(images, torch.zeros(len(images)), lambda x: x)


def test_without_strength_images_stay() -> None:
    images = torch.rand(4, 3, 12, 20)
    assert torch.allclose(warped(images, 0.0), images, atol=1e-5)


def test_images_stay_images_and_constant_ones_constant() -> None:
    images = torch.rand(8, 3, 16, 16)
    changed = warped(images, 2.0)
    assert changed.shape == images.shape
    assert bool(((changed >= 0) & (changed <= 1)).all())
    gray = torch.full((4, 3, 16, 16), 0.3)
    assert torch.allclose(warped(gray, 2.0), gray, atol=1e-5)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_the_mean_displacement_is_drawn_up_to_the_strength(strength: float) -> None:
    height, width, count = 40, 64, 300
    rows = torch.arange(height).view(1, 1, -1, 1).expand(count, 1, height, width)
    columns = torch.arange(width).view(1, 1, 1, -1).expand(count, 1, height, width)
    # A ramp says where each pixel was read. At the border it is cut off.
    ramp = torch.cat([rows / height, columns / width], 1).float()
    moved = (warped(ramp, strength) - ramp) * torch.tensor([height, width]).view(2, 1, 1)
    inside = moved[:, :, 4:-4, 4:-4].abs().mean((1, 2, 3))
    assert float(inside.max()) < 1.35 * strength
    assert float(inside.mean()) == pytest.approx(strength / 2, rel=0.12)
    # Along both sides alike, and not the same in two images.
    down, across = moved[:, :, 4:-4, 4:-4].abs().mean((0, 2, 3)).tolist()
    assert down == pytest.approx(across, rel=0.15)
    assert not torch.allclose(moved[0], moved[1], atol=0.01)


def test_the_flow_is_smooth() -> None:
    size = 48
    ramp = (torch.arange(size) / size).view(1, 1, 1, -1).expand(50, 1, size, size)
    moved = (warped(ramp.contiguous(), 1.0) - ramp)[..., 4:-4] * size
    steps = (moved[..., 1:] - moved[..., :-1]).abs().mean()
    # At most eight cells of six pixels: a change of about two means within half a cell.
    assert float(steps) < float(moved.abs().mean())


def test_a_negative_strength_is_refused() -> None:
    with pytest.raises(ValueError, match="`strength` to be"):
        WarpTriggers(strength=-1.0)
