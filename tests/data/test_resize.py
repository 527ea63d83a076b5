import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fst_lightning.data import resize
from fst_lightning.data.resize import resize_images


def draw(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(2, 40), st.integers(0, 1000))
def test_square_images_as_pillow_resizes_them(before: int, after: int, seed: int) -> None:
    images = draw((2, 3, before, before), seed)
    got = resize_images(images, after)
    for image, result in zip(images, got, strict=True):
        pillow = Image.fromarray(image.permute(1, 2, 0).numpy())
        expected = np.asarray(pillow.resize((after, after), Image.Resampling.BILINEAR))
        # Pillow counts in fixed point and rounds twice, once for each direction.
        difference = expected.astype(int) - result.permute(1, 2, 0).numpy().astype(int)
        assert np.abs(difference).max() <= 1


@pytest.mark.parametrize(("height", "width"), [(8, 14), (14, 8), (8, 9)])
def test_cuts_out_the_center_square(height: int, width: int) -> None:
    images = draw((2, 3, height, width))
    top, left = (height - 8) // 2, (width - 8) // 2
    assert torch.equal(resize_images(images, 8), images[:, :, top : top + 8, left : left + 8])


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    images = draw((7, 3, 9, 9))
    whole = resize_images(images, 5)
    monkeypatch.setattr(resize, "_CHUNK", 2)
    assert torch.equal(resize_images(images, 5), whole)


def test_channels_one_by_one_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Independent of the loop: all images and channels in one call of PyTorch."""
    monkeypatch.setattr(resize, "_PIXELS_AT_A_TIME", 200)
    images = draw((5, 3, 13, 17))
    square = images[:, :, :, 2:15].float()
    for size in (5, 13, 20):
        whole = torch.nn.functional.interpolate(
            square, size=(size, size), mode="bilinear", align_corners=False, antialias=True
        )
        assert torch.equal(resize_images(images, size), whole.round().clamp(0, 255).byte())
