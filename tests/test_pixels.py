"""Images that a trigger is not made for are refused."""

import pytest
import torch
from torch import Tensor

from fst_lightning.attacks import BadNets, Blended, check_pixels


def images() -> Tensor:
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_images_that_were_normalized_and_back_pass(dtype: torch.dtype) -> None:
    pixels = images()
    pixels[0, 0, 0, 0], pixels[0, 0, 0, 1] = 0, 1
    mean, std = 0.45, 0.225
    check_pixels(((pixels - mean) / std).to(dtype).float().mul(std).add(mean).to(dtype))
    check_pixels(pixels[:0].to(dtype))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda pixels: pixels * 255,
        lambda pixels: (pixels - 0.5) / 0.5,
        lambda pixels: (pixels - 0.485) / 0.229,
        lambda pixels: pixels.where(pixels != pixels.max(), torch.nan),
        lambda pixels: pixels.where(pixels != pixels.max(), torch.inf),
    ],
    ids=["0..255", "-1..1", "ImageNet", "NaN", "infinity"],
)
def test_other_ranges_are_refused_with_what_was_found(wrong) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    found = wrong(images())
    with pytest.raises(ValueError, match=rf"from {float(found.min()):.4g} to .* `mean` and `std`"):
        check_pixels(found)


def test_whole_numbers_and_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="divide uint8 by 255"):
        check_pixels((images() * 255).byte())
    with pytest.raises(ValueError, match=r"\(N, C, H, W\), but got \(3, 8, 8\)"):
        check_pixels(images()[0])


@pytest.mark.parametrize("kind", [BadNets, Blended])
def test_an_attack_looks_at_its_first_batch(kind: type[BadNets | Blended]) -> None:
    with pytest.raises(ValueError, match=r"Expected images in \[0, 1\] for a trigger"):
        kind()(images() * 255)
    with pytest.raises(ValueError, match=r"Expected images in \[0, 1\] for a trigger"):
        kind().stamp(images() - 0.5, torch.ones(4, dtype=torch.bool))
