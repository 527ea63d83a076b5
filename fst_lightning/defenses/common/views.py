"""Random views of images, drawn separately for each image, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def random_views(
    images: Tensor,
    generator: torch.Generator,
    *,
    least_area: float,
    flip: bool = False,
    color: float = 0.0,
) -> Tensor:
    r"""Crop and resize images at random, and optionally mirror them and change their colors.

    A crop keeps the shape of the image and covers a share of its area from ``least_area`` to 1.
    Colors change in four of five images: brightness, contrast and saturation by factors from
    ``1 - color`` to ``1 + color``. One image in five becomes gray.

    Args:
        images: ``(N, C, H, W)``, float.
        generator: A CPU generator, the only source of random numbers.
        least_area: Smallest area of a crop, greater than 0 and at most 1; 1 crops nothing.
        flip: Whether to mirror half of the images.
        color: Largest change of colors, 0 to 1; 0 keeps them.

    Returns:
        ``(N, C, H, W)``; values may leave the range of the images.

    Example:
        >>> images = torch.rand(2, 3, 4, 4)
        >>> same = random_views(images, torch.Generator(), least_area=1.0)
        >>> torch.allclose(same, images, atol=1e-5)
        True
    """
    count = len(images)

    def drawn(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    side = drawn(least_area, 1).sqrt()
    left, top = (drawn(-1, 1) * (1 - side) for _ in range(2))
    mirrored = (drawn(0, 1) < 0.5) & flip
    places = torch.zeros(count, 2, 3)
    places[:, 0, 0], places[:, 1, 1] = torch.where(mirrored, -side, side), side
    places[:, 0, 2], places[:, 1, 2] = left, top
    places = places.to(images.device, images.dtype)
    grid = functional.affine_grid(places, list(images.shape), align_corners=False)
    views = functional.grid_sample(images, grid, align_corners=False, padding_mode="border")
    if not color:
        return views

    def factors() -> Tensor:
        return drawn(1 - color, 1 + color).to(images.device, images.dtype).view(-1, 1, 1, 1)

    brightness, contrast, saturation = factors(), factors(), factors()
    changed = views * brightness
    middle = changed.mean((1, 2, 3), keepdim=True)
    changed = middle + (changed - middle) * contrast
    gray = changed.mean(1, keepdim=True)
    changed = gray + (changed - gray) * saturation
    chance = drawn(0, 1).to(images.device).view(-1, 1, 1, 1)
    views = torch.where(chance < 0.8, changed, views)
    becomes_gray = drawn(0, 1).to(images.device).view(-1, 1, 1, 1) < 0.2
    return torch.where(becomes_gray, views.mean(1, keepdim=True).expand_as(views), views)
