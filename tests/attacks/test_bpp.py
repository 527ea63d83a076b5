import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fst_lightning.attacks import Bpp
from fst_lightning.attacks.bpp import dither, quantize
from tests import tiny

EVERY = torch.arange(256).reshape(1, 1, 16, 16) / 255


def distinct(images: torch.Tensor) -> npt.NDArray[np.float64]:
    return np.unique(images.double().numpy())


def diffuse(plane: npt.NDArray[np.float64], depth: int) -> tuple[npt.NDArray[np.float64], float]:
    """Floyd and Steinberg's loop, one pixel after the other; and how near a pixel was to a tie."""
    plane = plane.copy()
    height, width = plane.shape
    nearest = 1.0
    for i in range(height):
        for j in range(width):
            old = plane[i, j]
            nearest = min(nearest, abs(old * (depth - 1) % 1 - 0.5))
            plane[i, j] = min(max(round(old * (depth - 1)), 0), depth - 1) / (depth - 1)
            error = old - plane[i, j]
            for down, right, share in ((0, 1, 7), (1, -1, 3), (1, 0, 5), (1, 1, 1)):
                if i + down < height and 0 <= j + right < width:
                    plane[i + down, j + right] += error * share / 16
    return plane, nearest


def test_the_published_levels() -> None:
    levels = distinct(Bpp().trigger(EVERY))
    assert (255 * levels).tolist() == pytest.approx(
        [0, 36.43, 72.86, 109.29, 145.71, 182.14, 218.57, 255], abs=0.01
    )
    rounded = np.rint(255 * distinct(Bpp()(EVERY)))
    assert rounded.tolist() == [0, 36, 73, 109, 146, 182, 219, 255]


@pytest.mark.parametrize("depth", [2, 3, 8, 16, 32, 256])
def test_quantizing(depth: int) -> None:
    attack = Bpp(depth)
    once = attack.trigger(EVERY)
    assert len(distinct(once)) == depth
    assert torch.equal(attack.trigger(once), once)
    assert torch.equal(attack(attack(EVERY)), attack(EVERY))
    assert (float(once.min()), float(once.max())) == (0, 1)
    assert float((once - EVERY).abs().max()) <= 0.5 / (depth - 1) + 1e-6
    levels = np.linspace(0, 1, depth)
    nearest = levels[np.abs(EVERY.numpy()[..., None] - levels).argmin(-1)]
    assert np.abs(once.numpy() - nearest).max() < 1e-6


@settings(deadline=None, max_examples=25)
@given(
    depth=st.sampled_from((2, 4, 8, 33)),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    seed=st.integers(0, 2**31),
)
def test_dithering_is_the_loop_over_pixels(depth: int, height: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    stored = torch.randint(0, 256, (2, 3, height, width), generator=generator)
    images = stored.double() / 255
    dithered = dither(images, depth).numpy()
    for image, result in zip(images.numpy(), dithered, strict=True):
        for plane, done in zip(image, result, strict=True):
            expected, nearest = diffuse(plane, depth)
            assume(nearest > 1e-9)  # The order of the sums decides a tie.
            assert np.abs(done - expected).max() < 1e-9


def test_dithering_keeps_the_brightness() -> None:
    gray = torch.full((1, 1, 32, 32), 100 / 255)
    dithered = Bpp(depth=4, dithering=True).trigger(gray)
    assert float(dithered.mean()) == pytest.approx(100 / 255, abs=0.005)
    assert float(quantize(gray, 4).mean()) == pytest.approx(1 / 3)
    assert len(distinct(dithered)) == 2


def test_dithering_changes_a_pixel_by_one_step_at_most() -> None:
    images = tiny.images(4, 16) / 255
    dithered = Bpp(dithering=True).trigger(images)
    assert float((dithered - images).abs().max()) <= 1 / 7 + 1e-6
    assert len(distinct(dithered)) == 8
    assert not torch.equal(dithered, Bpp().trigger(images))


@pytest.mark.parametrize("dithering", [False, True])
def test_a_cover_row_carries_the_residual_of_another(dithering: bool) -> None:
    attack = Bpp(dithering=dithering)
    stored = tiny.images(5).numpy().astype(np.int64)
    triggered = attack(torch.from_numpy(stored) / 255).mul(255).round().numpy()
    covered = attack.cover(torch.from_numpy(stored) / 255) * 255
    for row in range(5):
        expected = stored[row] + triggered[row - 1] - stored[row - 1]
        assert np.abs(covered[row].numpy() - expected.clip(0, 255)).max() < 1e-3
    assert not bool((covered.round().numpy() == triggered).all(axis=(1, 2, 3)).any())


def test_a_cover_row_alone_does_not_become_the_trigger() -> None:
    image = tiny.images(1) / 255
    assert torch.equal(Bpp().cover(image), image)


def test_as_many_cover_rows_as_poisoned_ones_unless_told() -> None:
    assert Bpp(poison_ratio=0.2).cover_ratio == pytest.approx(0.2)
    assert Bpp(poison_ratio=0.8).cover_ratio == pytest.approx(0.2)
    assert Bpp(cover_ratio=0.3).cover_ratio == 0.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 1}, "`depth` to be a whole number from 2 to 256, but got 1"),
        ({"depth": 257}, "`depth`"),
        ({"depth": 8.0}, "`depth`"),
        ({"cover_ratio": -1}, r"`cover_ratio` to be a number in \[0, 1\], but got -1"),
    ],
)
def test_refuses(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Bpp(**arguments)  # type: ignore[arg-type]
