"""Bring images in memory to one size."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_CHUNK = 256
_PIXELS_AT_A_TIME = 2**24


def resize_images(images: Tensor, image_size: int) -> Tensor:
    """Cut out the center square and resize it, bilinear with antialiasing.

    Args:
        images: Uint8 of shape (N, C, H, W).
        image_size: Height and width of the result in pixels.

    Returns:
        uint8 of shape (N, C, image_size, image_size); values are rounded to the nearest.

    Example:
        >>> resize_images(torch.zeros(2, 3, 12, 16, dtype=torch.uint8), 8).shape
        torch.Size([2, 3, 8, 8])
    """
    height, width = images.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = images[:, :, top : top + side, left : left + side]
    if side == image_size:
        return square.contiguous()
    resized = torch.empty(*images.shape[:2], image_size, image_size, dtype=torch.uint8)
    # In chunks of a channel, because the float copy is four times the size.
    chunk = max(1, min(_CHUNK, _PIXELS_AT_A_TIME // side**2))
    for start in range(0, len(images), chunk):
        for channel in range(images.shape[1]):
            part = slice(start, start + chunk), slice(channel, channel + 1)
            resized[part] = interpolate(square[part].float(), image_size)
    return resized


def interpolate(values: Tensor, image_size: int) -> Tensor:
    """Resize float images with values in [0, 255] and round them to uint8.

    Args:
        values: Float of shape (N, C, H, W).
        image_size: Height and width of the result in pixels.
    """
    resized = functional.interpolate(
        values, size=(image_size, image_size), mode="bilinear", align_corners=False, antialias=True
    )
    return resized.round().clamp(0, 255).to(torch.uint8)
