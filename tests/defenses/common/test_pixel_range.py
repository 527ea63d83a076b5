"""The range of pixels, against the arithmetic of a normalization."""

import pytest
import torch

from fst_lightning.defenses import CleanData
from fst_lightning.defenses.common.pixel_range import PixelRange

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def clean(images: torch.Tensor, *, known: bool = True) -> CleanData:
    labels = torch.zeros(len(images), dtype=torch.int64)
    mean, std = (MEAN, STD) if known else (None, None)
    return CleanData(images, labels, mean=mean, std=std)


@pytest.mark.parametrize("stored", [torch.uint8, torch.float32])
def test_a_known_normalization_gives_the_range(stored: torch.dtype) -> None:
    images = torch.full((2, 3, 4, 4), 1, dtype=stored)
    found = PixelRange.of(clean(images))
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        assert found.low[0, channel].item() == pytest.approx((0 - mean) / std)
        assert found.high[0, channel].item() == pytest.approx((1 - mean) / std)


def test_an_unknown_normalization_is_read_off_the_images() -> None:
    images = torch.rand(3, 2, 4, 4)
    images[0, 0, 0, 0], images[1, 0, 2, 3] = -2.0, 5.0
    images[:, 1] = 0.5  # one value only: the range has a width all the same
    found = PixelRange.of(clean(images, known=False))
    assert (found.low.flatten().tolist(), found.high[0, 0].item()) == ([-2.0, 0.5], 5.0)
    assert found.high[0, 1].item() == pytest.approx(0.501)


def test_both_ways_undo_each_other_and_what_is_outside_is_clipped() -> None:
    found = PixelRange.of(clean(torch.zeros(1, 3, 2, 2, dtype=torch.uint8)))
    pixels = torch.rand(4, 3, 2, 2)
    torch.testing.assert_close(found.to_pixels(found.to_inputs(pixels)), pixels)
    beyond = found.to_inputs(torch.tensor([-0.5, 1.5]).view(2, 1, 1, 1).expand(2, 3, 2, 2))
    assert found.to_pixels(beyond).amax((1, 2, 3)).tolist() == [0.0, 1.0]
    assert found.to_pixels(pixels.bfloat16()).dtype == torch.float32


def test_it_is_saved_with_its_module() -> None:
    found = PixelRange.of(clean(torch.rand(1, 3, 2, 2)))
    other = PixelRange()
    other.load_state_dict(found.state_dict())
    assert torch.equal(other.low, found.low)
    assert torch.equal(other.high, found.high)
