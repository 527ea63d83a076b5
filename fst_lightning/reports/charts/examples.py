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
_SMALLEST_SSIM = 6
"""Pixels of a side below which SSIM has no window."""
_SMALLEST = 64
"""Pixels that an image is enlarged to, at least: one of 32 x 32 is hard to see."""


def save_examples(
    clean: Tensor, triggered: Tensor, path: str | os.PathLike[str]
) -> dict[str, float | None]:
    r"""Draw clean images, triggered images and their difference, and measure the difference.

    The picture has a column for each of the first eight images: clean, triggered, and ten times the
    absolute difference, which is black where nothing changed.

    Args:
        clean: ``(N, 3, H, W)`` or ``(N, 1, H, W)`` in [0, 1], at least one.
        triggered: The same images with the trigger.
        path: The PNG to write. Its folder is created if it does not exist.

    Returns:
        Over the images that are shown: ``psnr``, the peak signal-to-noise ratio
        :math:`-10 \log_{10} \mathrm{MSE}` in dB, None if nothing changed; ``ssim``, the mean
        structural similarity, at most 1, None for images of fewer than 6 pixels a side; ``linf``,
        the largest change of a value, 0 to 1.

    Raises:
        ValueError: If there is no image, or the shapes differ.

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
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _grid([clean, triggered, _AMPLIFIED * difference]).save(path, format="PNG")
    return {**_similarity(clean, triggered), "linf": float(difference.max())}


def _similarity(clean: Tensor, triggered: Tensor) -> dict[str, float | None]:
    from torchmetrics.functional.image import (
        peak_signal_noise_ratio,
        structural_similarity_index_measure,
    )

    found: dict[str, float | None] = {"psnr": None, "ssim": None}
    if not torch.equal(clean, triggered):
        found["psnr"] = float(peak_signal_noise_ratio(triggered, clean, data_range=1.0))
    if min(clean.shape[-2:]) >= _SMALLEST_SSIM:
        ssim = structural_similarity_index_measure(triggered, clean, data_range=1.0)
        assert isinstance(ssim, Tensor)
        found["ssim"] = float(ssim)
    return found


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
