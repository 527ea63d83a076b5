import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fst_lightning.attacks import WaNet
from tests import tiny

Pixels = npt.NDArray[np.float64]


def prepared(attack: WaNet, size: int = 12) -> WaNet:
    attack.prepare(tiny.images(2, size=size), torch.zeros(2, dtype=torch.int64), 4, seed=0)
    return attack


def cubic(distance: float) -> float:
    """The kernel of bicubic interpolation with a = -0.75."""
    d, a = abs(distance), -0.75
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def enlarge(control: Pixels, size: int) -> Pixels:
    """Bicubic, pixel by pixel; the outermost control points lie on the outermost pixels."""
    k = len(control)
    result = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            y, x = i * (k - 1) / (size - 1), j * (k - 1) / (size - 1)
            for di in range(-1, 3):
                for dj in range(-1, 3):
                    r, c = math.floor(y) + di, math.floor(x) + dj
                    value = control[min(max(r, 0), k - 1), min(max(c, 0), k - 1)]
                    result[i, j] += cubic(y - r) * cubic(x - c) * value
    return result


def warp(image: Pixels, places: Pixels) -> Pixels:
    """Bilinear sampling, pixel by pixel; -1 and 1 are the centers of the outermost pixels."""
    height, width = image.shape
    result = np.zeros_like(image)
    for i in range(height):
        for j in range(width):
            x = (places[i, j, 0] + 1) / 2 * (width - 1)
            y = (places[i, j, 1] + 1) / 2 * (height - 1)
            x0, y0 = min(math.floor(x), width - 2), min(math.floor(y), height - 2)
            fx, fy = x - x0, y - y0
            top = (1 - fx) * image[y0, x0] + fx * image[y0, x0 + 1]
            bottom = (1 - fx) * image[y0 + 1, x0] + fx * image[y0 + 1, x0 + 1]
            result[i, j] = (1 - fy) * top + fy * bottom
    return result


@settings(deadline=None, max_examples=6)
@given(
    strength=st.floats(0, 3),
    k=st.integers(2, 6),
    size=st.integers(6, 14),
    seed=st.integers(0, 2**31),
)
def test_warps_as_loops_over_pixels_do(strength: float, k: int, size: int, seed: int) -> None:
    attack = prepared(WaNet(k, strength, seed), size)
    generator = torch.Generator().manual_seed(seed)
    psi = (torch.rand(1, 2, k, k, generator=generator) * 2 - 1)[0].double().numpy()
    psi /= np.abs(psi).mean()
    line = np.linspace(-1, 1, size)
    identity = np.stack(np.meshgrid(line, line), axis=-1)
    field = np.stack([enlarge(plane, size) for plane in psi], axis=-1)
    places = np.clip(identity + strength * field / size, -1, 1)
    assert np.abs(attack.grid[0].numpy() - places).max() < 1e-5
    image = tiny.images(1, size, seed=seed).double() / 255
    warped = attack.trigger(image.float())[0].numpy()
    for channel in range(3):
        expected = warp(image[0, channel].numpy(), places)
        assert np.abs(warped[channel] - expected).max() < 1e-4


def test_without_strength_nothing_moves() -> None:
    images = tiny.images(4, 32) / 255
    assert torch.equal(prepared(WaNet(strength=0.0), 32)(images), images)


@pytest.mark.parametrize("size", [8, 32, 64])
def test_how_far_a_pixel_moves(size: int) -> None:
    still = prepared(WaNet(strength=0.0), size).grid
    moved = prepared(WaNet(strength=0.5), size).grid - still
    generator = torch.Generator().manual_seed(0)
    control = torch.rand(1, 2, 4, 4, generator=generator) * 2 - 1
    # Bicubic interpolation overshoots by at most the sum of its weights, (4/3 for a = -0.75)^2.
    bound = 0.5 * float(control.abs().max() / control.abs().mean()) / size * 1.79
    assert 0 < float(moved.abs().max()) <= bound
    # The middle moves in pixels by the same amount on every size of image.
    assert 0.02 < float(moved.abs().mean()) * size / 2 < 0.5


def test_the_field_is_the_same_for_all_images_and_runs() -> None:
    one, two = WaNet(), WaNet()
    one.prepare(tiny.images(1), torch.zeros(1, dtype=torch.int64), 4, seed=1)
    two.prepare(tiny.images(1), torch.zeros(1, dtype=torch.int64), 4, seed=2)
    assert torch.equal(one.grid, two.grid)
    assert one.grid.shape == (1, tiny.SIZE, tiny.SIZE, 2)
    assert not torch.equal(one.grid, prepared(WaNet(pattern_seed=1), tiny.SIZE).grid)
    # Seen in the images: a ramp shows where a pixel came from.
    ramp = torch.linspace(0, 1, tiny.SIZE).expand(3, 3, tiny.SIZE, tiny.SIZE)
    warped = one.trigger(ramp)
    assert torch.equal(warped[0], warped[2])


def test_noise_differs_for_every_image_and_stays_near_the_field() -> None:
    torch.manual_seed(0)
    size = 32
    attack = prepared(WaNet(), size)
    ramp = torch.linspace(0, 1, size).expand(64, 1, size, size)
    moves = (attack.cover(ramp) - attack(ramp))[:, 0]
    assert not torch.equal(moves[0], moves[1])
    # A ramp over 2 in grid units, so that a move by u / 32 changes it by u / 64; and rounding.
    assert float(moves.abs().max()) <= 1 / 64 + 1.01 / 255
    inner = moves[:, 2:-2, 2:-2]
    # U(-1, 1) has a standard deviation of 1 / sqrt(3); rounding twice adds 1 / 12 each.
    expected = math.sqrt((1 / 64) ** 2 / 3 + 2 * (1 / 255) ** 2 / 12)
    assert float(inner.std()) == pytest.approx(expected, rel=0.05)
    assert float(inner.mean()) == pytest.approx(0, abs=2e-4)


def test_noise_moves_along_both_axes() -> None:
    torch.manual_seed(0)
    attack = prepared(WaNet(), 16)
    ramp = torch.linspace(0, 1, 16)[:, None].expand(2, 1, 16, 16)
    assert float((attack.cover(ramp) - attack(ramp)).std()) > 0.005


def test_cover_rows_are_of_8_bit_too() -> None:
    covered = prepared(WaNet()).cover(tiny.images(3, 12) / 255)
    assert torch.equal(covered, (covered * 255).round() / 255)


def test_is_the_same_under_autocast() -> None:
    images = tiny.images(2, 12) / 255
    attack = prepared(WaNet())
    expected = attack(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attack(images), expected)


def test_twice_as_many_cover_rows_unless_told() -> None:
    assert WaNet(poison_ratio=0.1).cover_ratio == pytest.approx(0.2)
    assert WaNet(poison_ratio=0.5).cover_ratio == pytest.approx(0.5)
    assert WaNet(cover_ratio=0.0).cover_ratio == 0
    plan = WaNet().plan(tiny.labels(200), 4, seed=0)
    assert (plan.num_poisoned, int(plan.cover.sum())) == (20, 40)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid_size": 1}, "`grid_size` to be a whole number of 2 or more, but got 1"),
        ({"grid_size": 2.5}, "`grid_size`"),
        ({"strength": -0.1}, "`strength` to be a number of 0 or more, but got -0.1"),
        ({"strength": math.nan}, "`strength`"),
        ({"cover_ratio": 1.1}, r"`cover_ratio` to be a number in \[0, 1\], but got 1.1"),
    ],
)
def test_refuses(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WaNet(**arguments)  # type: ignore[arg-type]


def test_images_of_another_size_than_prepared() -> None:
    attack = WaNet()
    attack(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"\(C, 32, 32\).*\(3, 8, 8\); call `prepare`"):
        attack(torch.zeros(1, 3, 8, 8))
