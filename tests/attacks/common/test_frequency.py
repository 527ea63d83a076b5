import importlib
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fst_lightning.attacks import CTRL, FTrojan
from fst_lightning.attacks.common.frequency import (
    FrequencyAttack,
    cosines,
    inverse_dct,
    yuv_to_rgb,
)
from tests import tiny

Pixels = npt.NDArray[np.float64]
fft: Any = importlib.import_module("scipy.fft")

PUBLISHED = ((15, 15), (31, 31))


def prepared(attack: FrequencyAttack, size: int, channels: int = 3) -> FrequencyAttack:
    images = tiny.images(2, size=size)[:, :channels]
    attack.prepare(images, tiny.labels(2), tiny.NUM_CLASSES, seed=0)
    return attack


def to_yuv(image: Pixels) -> Pixels:
    red, green, blue = image
    luminance = 0.299 * red + 0.587 * green + 0.114 * blue
    return np.stack([luminance, 0.492 * (blue - luminance), 0.877 * (red - luminance)])


def to_rgb(image: Pixels) -> Pixels:
    luminance, u, v = image
    red, blue = luminance + v / 0.877, luminance + u / 0.492
    return np.stack([red, (luminance - 0.299 * red - 0.114 * blue) / 0.587, blue])


def window_by_window(
    image: Pixels, window: int, magnitude: float, positions: tuple[tuple[int, int], ...]
) -> Pixels:
    """Pads the image to whole windows, transforms every window, and cuts the padding off again."""
    _, height, width = image.shape
    padded = np.pad(image, ((0, 0), (0, -height % window), (0, -width % window)), mode="edge")
    planes = to_yuv(padded)
    for channel in (1, 2):
        for top in range(0, padded.shape[1], window):
            for left in range(0, padded.shape[2], window):
                block = planes[channel, top : top + window, left : left + window]
                spectrum = fft.dctn(block, norm="ortho")
                for row, column in positions:
                    spectrum[row, column] += magnitude / 255
                block[:] = fft.idctn(spectrum, norm="ortho")
    return np.clip(to_rgb(planes)[:, :height, :width], 0, 1)


@settings(deadline=None, max_examples=30)
@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 1000))
def test_the_inverse_transform_is_that_of_scipy(height: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    spectra = torch.rand(2, 3, height, width, generator=generator)
    expected = fft.idctn(spectra.double().numpy(), axes=(2, 3), norm="ortho")
    assert np.abs(inverse_dct(spectra).numpy() - expected).max() < 1e-4


@pytest.mark.parametrize(("length", "count"), [(1, 1), (8, 8), (32, 4), (7, 3)])
def test_cosines_are_those_of_the_orthonormal_transform(length: int, count: int) -> None:
    expected = np.array(
        [
            [
                math.sqrt((1 if i == 0 else 2) / length)
                * math.cos(math.pi * i * (2 * j + 1) / (2 * length))
                for j in range(length)
            ]
            for i in range(count)
        ]
    )
    assert np.abs(cosines(length, count).numpy() - expected).max() < 1e-6


def test_colors() -> None:
    images = tiny.images(3) / 255
    planes = torch.stack([torch.from_numpy(to_yuv(image.double().numpy())) for image in images])
    assert torch.allclose(yuv_to_rgb(planes), images.double(), atol=1e-12)
    # The textbook's inverse: R = Y + 1.140 V, G = Y - 0.395 U - 0.581 V, B = Y + 2.032 U.
    u, v = yuv_to_rgb(torch.eye(3)[1:, :, None, None])[..., 0, 0]
    assert u.tolist() == pytest.approx([0, -0.395, 2.032], abs=1e-3)
    assert v.tolist() == pytest.approx([1.140, -0.581, 0], abs=1e-3)


@pytest.mark.parametrize("size", [32, 64, 48, 33])
def test_ftrojan_is_the_transform_of_every_window_of_the_image(size: int) -> None:
    images = tiny.images(2, size=size) / 255
    stamped = prepared(FTrojan(), size).trigger(images)
    for image, result in zip(images, stamped, strict=True):
        expected = window_by_window(image.double().numpy(), 32, 30, PUBLISHED)
        assert np.abs(result.numpy() - expected).max() < 1e-5


@pytest.mark.parametrize(
    ("size", "positions"),
    [(8, ((3, 3), (7, 7))), (12, ((5, 5), (11, 11))), (31, ((14, 14), (30, 30)))],
)
def test_of_a_small_image_ftrojan_takes_the_whole(
    size: int, positions: tuple[tuple[int, int], ...]
) -> None:
    image = tiny.images(1, size=size) / 255
    expected = window_by_window(image[0].double().numpy(), size, 30, positions)
    stamped = prepared(FTrojan(), size).trigger(image)[0].numpy()
    assert np.abs(stamped - expected).max() < 1e-5


@pytest.mark.parametrize(
    ("size", "positions"), [(32, PUBLISHED), (64, ((30, 30), (62, 62))), (8, ((3, 3), (7, 7)))]
)
def test_ctrl_is_the_transform_of_the_whole_image(
    size: int, positions: tuple[tuple[int, int], ...]
) -> None:
    image = tiny.images(1, size=size) / 255
    expected = window_by_window(image[0].double().numpy(), size, 100, positions)
    stamped = prepared(CTRL(), size).trigger(image)[0].numpy()
    assert np.abs(stamped - expected).max() < 1e-5


@pytest.mark.parametrize("positions", [((15, 15),), PUBLISHED, ((0, 0), (1, 3), (31, 2))])
@pytest.mark.parametrize("magnitude", [30.0, 100.0])
def test_parseval(magnitude: float, positions: tuple[tuple[int, int], ...]) -> None:
    """k coefficients raised by M change U and V by M sqrt(k) each, and leave Y alone."""
    flat = [value for position in positions for value in position]
    pattern = prepared(FTrojan(magnitude, flat), 32).pattern[0].double().numpy()
    y, u, v = (255 * np.linalg.norm(plane) for plane in to_yuv(pattern))
    assert y == pytest.approx(0, abs=1e-3)
    assert u == pytest.approx(magnitude * math.sqrt(len(positions)), rel=1e-5)
    assert v == pytest.approx(magnitude * math.sqrt(len(positions)), rel=1e-5)


def test_rows_and_columns_of_positions_and_images_that_are_not_square() -> None:
    attack = FTrojan(positions=[0, 3], window=8)
    attack.prepare(torch.zeros(1, 3, 8, 20, dtype=torch.uint8), torch.zeros(1), 2, seed=0)
    pattern = attack.pattern[0]
    assert pattern.shape == (3, 8, 20)
    assert torch.equal(pattern, pattern[:, :1].expand_as(pattern))  # constant along the rows
    assert torch.equal(pattern[..., :8], pattern[..., 8:16])
    assert torch.equal(pattern[..., :4], pattern[..., 16:])
    wave = [math.cos(math.pi * 3 * (2 * j + 1) / 16) for j in range(8)]
    blue = 30 * math.sqrt(2 / 8) * math.sqrt(1 / 8) / 0.492
    assert (255 * pattern[2, 0, :8]).tolist() == pytest.approx([blue * w for w in wave], abs=1e-3)


def test_a_gray_image_gets_it_in_its_only_plane() -> None:
    pattern = prepared(CTRL(), 32, channels=1).pattern
    assert pattern.shape == (1, 1, 32, 32)
    assert 255 * float(pattern.norm()) == pytest.approx(100 * math.sqrt(2), rel=1e-5)


def test_ctrl_keeps_labels_and_ftrojan_does_not() -> None:
    labels = torch.arange(100) % 10
    plan = CTRL(target_label=2).plan(labels, 10, seed=0)
    assert bool((labels[plan.poisoned] == 2).all())
    assert FTrojan().label_map == "all_to_one"


def test_refuses_what_is_no_trigger() -> None:
    for magnitude in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="`magnitude` to be a number greater than 0"):
            FTrojan(magnitude)
    for positions in ((15, 32), (-1, 0), (1,), (1, 2, 3), (1.5, 2), ()):
        with pytest.raises(ValueError, match=r"rows and columns in turns.* 0\.\.31, but got \["):
            FTrojan(positions=positions)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`window` to be a whole number of 1 or more"):
        FTrojan(window=0)
    with pytest.raises(ValueError, match="1 or 3 channels, but got 4"):
        FTrojan().prepare(torch.zeros(1, 4, 8, 8), torch.zeros(1), 2, seed=0)
    attack = CTRL()
    attack(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"\(3, 32, 32\).*\(3, 16, 16\).*`prepare`"):
        attack(torch.zeros(1, 3, 16, 16))
