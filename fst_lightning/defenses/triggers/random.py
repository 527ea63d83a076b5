"""Triggers that are drawn at random, without a look at the network."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from fst_lightning.defenses.triggers.source import Classifier, TriggerSource
from fst_lightning.pixels import check_pixels
from fst_lightning.validate import check_number

_FEWEST_CELLS = 4  # of noise, along the shorter side
_WAVES = 0.2  # share of the patterns
_CYCLES = 12
_PATCHES = 0.5  # share of the triggers
_LEAST_PATCH = 2  # pixels
_LARGEST_PATCH = 1 / 4  # of a side


class RandomTriggers(TriggerSource):
    """Put a random trigger on images, a different one on each.

    *How it works.* Each chosen image gets noise of any coarseness or a wave, and half of them get a
    random patch as well (:func:`random_triggers` has the formula). A network that is tuned on such
    images with their true labels learns to ignore triggers in general. The source needs no look at
    the network and finds nothing in it.

    Args:
        share: Share of the images of each mini-batch that get a trigger, in [0, 1].
        strength: Largest strength of noise and waves, in [0, 1].

    Shape:
        Images ``(N, C, H, W)`` float in [0, 1].

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> source = RandomTriggers(share=1.0)
        >>> images = torch.full((4, 3, 32, 32), 0.5)
        >>> bool((source(images, torch.zeros(4), lambda x: x) != images).any())
        True

    See Also:
        - :class:`~fst_lightning.defenses.triggers.InvertedTriggers`: triggers that are found in the
          network.
    """

    def __init__(self, share: float = 1.0, strength: float = 0.3) -> None:
        super().__init__(share)
        check_number("strength", strength, high=1)
        self.strength = strength

    def forward(self, images: Tensor, labels: Tensor, classify: Classifier) -> Tensor:
        """Put a random trigger on a share of the images."""
        if self.share == 0:
            return images
        return random_triggers(images, self.share, self.strength, validate_range=False)

    def trigger(self, images: Tensor, labels: Tensor, classify: Classifier) -> Tensor:
        """Put a random trigger on every image."""
        return random_triggers(images, 1.0, self.strength, validate_range=False)


def random_triggers(
    images: Tensor, share: float = 1.0, strength: float = 0.3, validate_range: bool = True
) -> Tensor:
    r"""Put a trigger on images, another one on each: noise or a wave, on half of them a patch, too.

    .. math:: x' = \mathrm{clamp}_{[0, 1]}(x + r\, p), \qquad r \sim U(0, s)

    with the strength s and a pattern p in [-1, 1]: noise with cells from a pixel to a quarter of
    the image or, on one image in five, a plane wave of up to 12 cycles along either side. A patch
    is a rectangle of 2 pixels to a quarter of the image, full of other noise or of its signs.

    Tuned on such images with their own labels a network learns to look past them, and past triggers
    that resemble them. It stands with the strong augmentations that Borgnia et al. (2020, arXiv
    2011.09527) and Qiu et al. (DeepSweep, 2020, arXiv 2012.07006) found to weaken backdoors.

    Args:
        images: ``(N, C, H, W)``, float in [0, 1].
        share: of the images that get one, in [0, 1].
        strength: of a pattern, in [0, 1]; patches cover what is below them.
        validate_range: Whether to check that the images are in [0, 1]. The check waits for the
            device; pass False after the first batch if that matters.

    Returns:
        Images of the same shape, in [0, 1]; drawn from torch's global generator of their device.

    Raises:
        ValueError: If the images are not in [0, 1], for example because they are normalized.

    Example:
        >>> images = torch.full((8, 3, 32, 32), 0.5)
        >>> triggered = random_triggers(images)
        >>> bool((triggered >= 0).all() and (triggered <= 1).all())
        True
        >>> torch.equal(random_triggers(images, share=0.0), images)
        True
    """
    if validate_range or not images.is_floating_point():
        check_pixels(images)
    count = len(images)
    if not count:
        return images  # affine_grid takes no empty batch

    def drawn(low: float, high: float) -> Tensor:
        numbers = torch.rand(count, 1, 1, 1, device=images.device)
        return low + (high - low) * numbers

    # `where` on whole batches: picking rows would make the host wait for the device.
    noise = _noise(images)
    pattern = torch.where(drawn(0, 1) < _WAVES, _waves(images), 2 * noise - 1)
    triggered = (images + drawn(0, strength) * pattern).clamp(0, 1)
    # The noise of another image, for a patch of what is below it could not be told from it.
    content = noise.roll(1, 0)
    content = torch.where(drawn(0, 1) < 0.5, content, content.round())
    covered = _rectangles(images) & (drawn(0, 1) < _PATCHES)
    triggered = torch.where(covered, content, triggered)
    return torch.where(drawn(0, 1) < share, triggered, images).to(images.dtype)


def _noise(images: Tensor) -> Tensor:
    """Uniform noise in [0, 1], every image through a magnifying glass of its own."""
    count, _, height, width = images.shape
    noise = torch.rand(images.shape, device=images.device)
    most = math.log(max(1.0, min(height, width) / _FEWEST_CELLS))
    glass = torch.rand(count, device=images.device).mul(-most).exp()
    places = torch.zeros(count, 2, 3, device=images.device)
    places[:, 0, 0] = places[:, 1, 1] = glass
    grid = functional.affine_grid(places, list(images.shape), align_corners=False)
    return functional.grid_sample(noise, grid, align_corners=False, padding_mode="border")


def _waves(images: Tensor) -> Tensor:
    """Plane waves in [-1, 1] of random directions, lengths and phases, ``(N, 1, H, W)``."""
    count, _, height, width = images.shape
    across, down, phase = torch.rand(3, count, 1, 1, 1, device=images.device)
    rows = torch.arange(height, device=images.device).view(1, 1, -1, 1) / height
    columns = torch.arange(width, device=images.device).view(1, 1, 1, -1) / width
    cycles = _CYCLES * ((2 * across - 1) * columns + (2 * down - 1) * rows)
    return torch.sin(2 * math.pi * (cycles + phase))


def _rectangles(images: Tensor) -> Tensor:
    """Which pixels a random rectangle covers, one an image, cut off at the border."""
    count, _, height, width = images.shape
    inside = torch.ones((), dtype=torch.bool, device=images.device)
    for length, shape in ((height, (1, 1, -1, 1)), (width, (1, 1, 1, -1))):
        places = torch.arange(length, device=images.device).view(shape)
        start, size = torch.rand(2, count, 1, 1, 1, device=images.device)
        start = (start * length).floor()
        largest = max(_LEAST_PATCH, int(length * _LARGEST_PATCH))
        size = _LEAST_PATCH + (size * (largest - _LEAST_PATCH + 1)).floor()
        inside = inside & (places >= start) & (places < start + size)
    return inside
