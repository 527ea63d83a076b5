"""Random views of images, every image with numbers of its own; in plain PyTorch, on any device."""

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
    colour: float = 0.0,
) -> Tensor:
    r"""Crop and resize at random, perhaps mirror, perhaps change colours.

    A crop keeps the shape of the image and covers a share of its area from ``least_area`` to 1.
    Colours are changed in four of five images: brightness, contrast and saturation by factors from
    ``1 - colour`` to ``1 + colour``; one image in five becomes grey.

    Args:
        images: ``(N, C, H, W)``, float.
        generator: a CPU generator, the only source of random numbers.
        least_area: above 0, at most 1; 1 crops nothing.
        flip: mirror half of the images.
        colour: 0 to 1; 0 leaves colours alone.

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
    if not colour:
        return views

    def factors() -> Tensor:
        return drawn(1 - colour, 1 + colour).to(images.device, images.dtype).view(-1, 1, 1, 1)

    brightness, contrast, saturation = factors(), factors(), factors()
    changed = views * brightness
    middle = changed.mean((1, 2, 3), keepdim=True)
    changed = middle + (changed - middle) * contrast
    grey = changed.mean(1, keepdim=True)
    changed = grey + (changed - grey) * saturation
    chance = drawn(0, 1).to(images.device).view(-1, 1, 1, 1)
    views = torch.where(chance < 0.8, changed, views)
    becomes_grey = drawn(0, 1).to(images.device).view(-1, 1, 1, 1) < 0.2
    return torch.where(becomes_grey, views.mean(1, keepdim=True).expand_as(views), views)
