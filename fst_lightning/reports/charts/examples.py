"""A picture of what a trigger does to images, and how visible it is in numbers."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

_COUNT = 8
_AMPLIFIED = 10
_GAP = 2
_SMALLEST = 64
"""Pixels that an image is enlarged to, at least: one of 32 x 32 is hard to see."""


def save_examples(
    clean: Tensor, triggered: Tensor, path: str | os.PathLike[str]
) -> dict[str, float | None]:
    r"""Draw clean images, triggered images and their difference; measure the difference.

    The first eight images, one a column: clean, triggered, and ten times the absolute difference,
    black where nothing changed.

    Args:
        clean: ``(N, 3, H, W)`` or ``(N, 1, H, W)`` in [0, 1], at least one.
        triggered: the same images with the trigger on.
        path: of the PNG to write; its folder is made where there is none.

    Returns:
        Over the images that are shown: ``psnr``, the peak signal-to-noise ratio
        :math:`-10 \log_{10} \mathrm{MSE}` in dB, None where nothing changed; ``ssim``, the mean
        structural similarity, at most 1; ``linf``, the largest change of a value, 0 to 1.

    Raises:
        ValueError: for no image, or images of different shapes.

    Example:
        >>> import tempfile
        >>> clean = torch.zeros(1, 1, 16, 16)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     figures = save_examples(clean, clean + 0.1, f"{folder}/examples.png")
        >>> round(figures["psnr"], 3), round(figures["linf"], 3)
        (20.0, 0.1)
    """
    if clean.shape != triggered.shape or clean.dim() != 4 or len(clean) == 0:
        raise ValueError(
            "Expected `clean` and `triggered` to be the same images, at least one, (N, C, H, W), "
            f"but got {tuple(clean.shape)} and {tuple(triggered.shape)}."
        )
    clean, triggered = (images[:_COUNT].detach().cpu().double() for images in (clean, triggered))
    difference = (triggered - clean).abs()
    mean_square = float(difference.square().mean())
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _grid([clean, triggered, _AMPLIFIED * difference]).save(path, format="PNG")
    return {
        "psnr": -10 * math.log10(mean_square) if mean_square else None,
        "ssim": float(structural_similarity(clean, triggered).mean()),
        "linf": float(difference.max()),
    }


def structural_similarity(one: Tensor, two: Tensor) -> Tensor:
    r"""How alike the structure of two sets of images is, from means and variances in windows.

    .. math:: \frac{(2 \mu_1 \mu_2 + c_1)(2 \sigma_{12} + c_2)}
        {(\mu_1^2 + \mu_2^2 + c_1)(\sigma_1^2 + \sigma_2^2 + c_2)}

    with :math:`c_1 = 0.01^2` and :math:`c_2 = 0.03^2`, weighted by a Gaussian with standard
    deviation 1.5 in windows of 11 x 11 pixels, one around each pixel, of images that are mirrored
    at their edges (below 6 pixels windows are smaller); the mean over pixels and channels. Wang et
    al., "Image quality assessment: From error visibility to structural similarity", IEEE TIP 2004.

    Args:
        one: ``(N, C, H, W)`` in [0, 1].
        two: the same.

    Returns:
        ``(N,)``, at most 1.

    Example:
        >>> images = torch.rand(2, 3, 16, 16)
        >>> structural_similarity(images, images).tolist()
        [1.0, 1.0]
    """
    # Mirroring can't reach further than the image.
    radius = min(5, *(side - 1 for side in one.shape[-2:]))
    places = torch.arange(-radius, radius + 1, dtype=one.dtype, device=one.device)
    weights = torch.exp(-(places / 1.5).square() / 2)
    window = weights.outer(weights)[None, None] / weights.sum().square()

    def mean(planes: Tensor) -> Tensor:
        mirrored = functional.pad(planes, [radius] * 4, mode="reflect")
        return functional.conv2d(mirrored.flatten(0, 1)[:, None], window)

    mean_one, mean_two = mean(one), mean(two)
    luminance = 2 * mean_one * mean_two, mean_one.square() + mean_two.square()
    # Expectations of products minus products of expectations.
    covariance = 2 * mean(one * two) - luminance[0]
    variances = mean(one.square() + two.square()) - luminance[1]
    similarity = (luminance[0] + 0.01**2) * (covariance + 0.03**2)
    similarity = similarity / ((luminance[1] + 0.01**2) * (variances + 0.03**2))
    return similarity.reshape(len(one), -1).mean(dim=1)


def _grid(rows: list[Tensor]) -> Image.Image:
    """Images of one tensor in a row, on white; whole pixels are enlarged."""
    factor = math.ceil(_SMALLEST / min(rows[0].shape[-2:]))
    lines = []
    for images in rows:
        levels = (images.clamp(0, 1) * 255).round().to(torch.uint8)
        levels = levels.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
        padded = functional.pad(levels, [0, _GAP, 0, _GAP], value=255)
        lines.append(torch.cat(list(padded), dim=2))
    picture = torch.cat(lines, dim=1)[:, :-_GAP, :-_GAP]
    return Image.fromarray(picture.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())
