import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from fst_lightning.reports.charts.examples import save_examples
from tests import tiny


def pair(count: int, size: int, channels: int = 3, strength: float = 0.05) -> tuple[Tensor, Tensor]:
    clean = tiny.images(count, size=size)[:, :channels] / 255
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    return clean, (clean + strength * noise).clamp(0, 1)


@pytest.mark.parametrize("size", [8, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("strength", [0.01, 0.3])
def test_figures_are_those_of_torchmetrics(
    tmp_path: Path, size: int, channels: int, strength: float
) -> None:
    clean, triggered = pair(8, size, channels, strength)
    figures = save_examples(clean, triggered, tmp_path / "examples.png")
    psnr = peak_signal_noise_ratio(triggered, clean, data_range=1.0)
    ssim = structural_similarity_index_measure(triggered, clean, data_range=1.0)
    assert isinstance(ssim, Tensor)
    assert figures["psnr"] == pytest.approx(float(psnr), rel=1e-5)
    assert figures["ssim"] == pytest.approx(float(ssim), abs=1e-5)
    assert figures["linf"] == pytest.approx(float((triggered - clean).abs().max()), rel=1e-6)


@pytest.mark.parametrize("size", [6, 9])
def test_similarity_window_by_window(tmp_path: Path, size: int) -> None:
    clean, triggered = pair(1, size, 1)
    axis = np.arange(-5, 6)
    weights = np.exp(-np.add.outer(axis**2, axis**2) / (2 * 1.5**2))
    weights /= weights.sum()
    padded = [
        np.pad(images[0, 0].double().numpy(), 5, mode="reflect") for images in (clean, triggered)
    ]
    values = []
    for top in range(size):
        for left in range(size):
            x, y = (p[top : top + len(axis), left : left + len(axis)] for p in padded)
            mx, my = (weights * x).sum(), (weights * y).sum()
            vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
            cov = (weights * (x - mx) * (y - my)).sum()
            likeness = (2 * mx * my + 1e-4) * (2 * cov + 9e-4)
            values.append(likeness / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    found = save_examples(clean, triggered, tmp_path / "examples.png")["ssim"]
    assert found == pytest.approx(np.mean(values), rel=1e-6)


def test_images_too_small_for_a_window_have_no_similarity(tmp_path: Path) -> None:
    clean, triggered = pair(2, 5)
    figures = save_examples(clean, triggered, tmp_path / "examples.png")
    assert figures["ssim"] is None
    assert figures["psnr"] is not None


def test_nothing_changed(tmp_path: Path) -> None:
    clean, _ = pair(2, 16)
    figures = save_examples(clean, clean, tmp_path / "examples.png")
    assert figures == {"psnr": None, "ssim": pytest.approx(1.0), "linf": 0.0}


def test_a_known_change(tmp_path: Path) -> None:
    clean = torch.zeros(1, 1, 10, 10)
    triggered = clean.clone()
    triggered[0, 0, 3, 4] = 0.5
    figures = save_examples(clean, triggered, tmp_path / "examples.png")
    assert figures["psnr"] == pytest.approx(10 * math.log10(100 / 0.25))
    assert figures["linf"] == 0.5


@pytest.mark.parametrize("channels", [1, 3])
def test_the_picture(tmp_path: Path, channels: int) -> None:
    """Read again, every pixel: three rows of eight images, enlarged, with white between."""
    clean = tiny.images(9, size=8)[:, :channels] / 255
    triggered = (clean + 7 / 255).clamp(0, 1)
    path = tmp_path / "new" / "examples.png"
    figures = save_examples(clean, triggered, path)
    with Image.open(path) as file:
        pixels = np.asarray(file.convert("RGB")).astype(int)
    assert pixels.shape == (3 * 64 + 2 * 2, 8 * 64 + 7 * 2, 3)
    seen = np.zeros(pixels.shape[:2], bool)
    for column in range(8):
        before, after = (255 * images[column].double().numpy() for images in (clean, triggered))
        for row, expected in enumerate((before, after, np.minimum(10 * abs(after - before), 255))):
            place = slice(66 * row, 66 * row + 64), slice(66 * column, 66 * column + 64)
            seen[place] = True
            shown = pixels[place].reshape(8, 8, 8, 8, 3)
            assert (shown == shown[:, :1, :, :1]).all()  # each pixel is 8 x 8 of them
            wanted = np.broadcast_to(expected.round(), (3, 8, 8))
            assert np.abs(shown[:, 0, :, 0] - wanted.transpose(1, 2, 0)).max() <= 1
    assert (pixels[~seen] == 255).all()
    # The ninth image is neither shown nor measured.
    triggered[8] = 1 - triggered[8]
    assert save_examples(clean, triggered, path) == figures


def test_refuses_what_is_no_pair(tmp_path: Path) -> None:
    images = torch.zeros(2, 3, 8, 8)
    for clean, triggered in (
        (images, images[:1]),
        (images[:0], images[:0]),
        (images[0], images[0]),
        (images, images[..., :4]),
    ):
        with pytest.raises(ValueError, match="`clean` and `triggered` to be the same images"):
            save_examples(clean, triggered, tmp_path / "examples.png")
    assert not list(tmp_path.iterdir())
