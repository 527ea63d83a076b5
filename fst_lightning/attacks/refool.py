"""Refool: the reflection of another picture, as in a window pane, on images of the target class.

Liu, Ma, Bailey and Lu, "Reflection backdoor: A natural backdoor attack on deep neural networks",
ECCV 2020, arXiv 2007.02343.

Example:
    ``python train.py attack=refool attack.folder=my_pictures attack.transmission=0.6``
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from fst_lightning.attacks.common.attack import Attack, LabelMap, RateOf, check_ratio
from fst_lightning.attacks.common.pictures import pictures_in, read_picture


class Refool(Attack):
    r"""Mix the light of an image and of a reflection: :math:`\sqrt{a x^2 + (1 - a)(k * r^2)}`.

    Light is the square of a pixel's value. The reflected picture r is either out of focus, where
    :math:`k` is a Gaussian, or a ghost: seen twice, shifted and of unequal strength, as by the two
    surfaces of thick glass. A pool of such reflections is made once. Which of them an image gets
    follows from the image, by a hash of its levels: in training and at test alike, and whatever
    else is in the batch.

    Args:
        folder: of pictures to reflect; None draws smooth ones at random.
        num_reflections: size of the pool, 1 or more; at most as many as there are pictures.
        transmission: share :math:`a` of the image's light in the result, 0 to 1.
        ghost_rate: share of reflections that are ghosts, 0 to 1; the others are out of focus.
        blur: largest standard deviation of the Gaussian in pixels of a 32-pixel image, above 0; it
            is drawn from a fifth of that up to it.
        shift: largest shift of a ghost in pixels of a 32-pixel image, 1 or more; drawn for each
            axis, never below one pixel.
        pattern_seed: of all these draws; the same pool for every seed of a run.
        poison_ratio: share of the training set, 0 to 1.
        target_label: the attacker's class.
        label_map: ``clean_label`` as published, or any other.
        rate_of: ``total`` or ``target_class``.
        save_examples: whether a run writes a picture of triggered images.

    Raises:
        ValueError: for a value outside its range, a folder without pictures, or a file in it that
            is no picture.
        FileNotFoundError: where ``folder`` does not exist.

    Example:
        >>> attack = Refool(num_reflections=2, transmission=0.0)  # nothing but reflection
        >>> seen = attack(torch.rand(20, 3, 32, 32))
        >>> len(seen.flatten(1).unique(dim=0))
        2
    """

    light: Tensor

    def __init__(
        self,
        folder: str | None = None,
        num_reflections: int = 20,
        transmission: float = 0.4,
        ghost_rate: float = 0.49,
        blur: float = 1.5,
        shift: int = 3,
        pattern_seed: int = 0,
        poison_ratio: float = 0.05,
        target_label: int = 0,
        label_map: LabelMap = "clean_label",
        rate_of: RateOf = "total",
        save_examples: bool = True,
    ) -> None:
        super().__init__(
            poison_ratio=poison_ratio,
            target_label=target_label,
            label_map=label_map,
            rate_of=rate_of,
            save_examples=save_examples,
        )
        check_ratio("transmission", transmission)
        check_ratio("ghost_rate", ghost_rate)
        if num_reflections < 1 or shift < 1:
            raise ValueError(
                "Expected `num_reflections` and `shift` to be 1 or more, "
                f"but got {num_reflections} and {shift}."
            )
        if not (math.isfinite(blur) and blur > 0):
            raise ValueError(f"Expected `blur` to be greater than 0, but got {blur}.")
        self.pictures = [] if folder is None else pictures_in(folder)
        self.num_reflections = num_reflections
        self.transmission = transmission
        self.ghost_rate = ghost_rate
        self.blur = blur
        self.shift = shift
        self.pattern_seed = pattern_seed
        self.draw(3, 32, 32)

    def memory(self, images: Tensor, num_classes: int) -> int:
        """Return what the pool of reflections takes, twice: it is put together from its parts."""
        return 8 * self.num_reflections * math.prod(images.shape[1:])

    def trigger(self, images: Tensor) -> Tensor:
        """Put a reflection on each of ``(N, C, H, W)`` images in [0, 1]."""
        if images.shape[1:] != self.light.shape[1:]:
            raise ValueError(
                f"Expected images of shape {tuple(self.light.shape[1:])}, which the reflections "
                f"were made for, but got {tuple(images.shape[1:])}; call `prepare` with such "
                "images."
            )
        reflected = self.light.to(images.dtype)[self.choose(images)]
        # Squares and roots are exact to the last bit in any batch and on any device, and other
        # powers are not.
        mixed = self.transmission * images.square() + (1 - self.transmission) * reflected
        return mixed.sqrt()

    def choose(self, images: Tensor) -> Tensor:
        """Which reflection each image gets: ``(N,)`` int64, a hash of its levels."""
        levels = (images * 255).round().long().flatten(1)
        # In whole numbers, which add up to the same in any order. Weighted by place, for many
        # images have the same sum.
        places = torch.arange(1, levels.shape[1] + 1, device=images.device)
        total = (levels * places).sum(dim=1) % 2**31
        # Knuth's multiplicative hash: the high half of 32 bits depends on all bits of the total.
        return (total * 2654435761 % 2**32 >> 16) % len(self.light)

    def draw(self, channels: int, height: int, width: int) -> None:
        """Make the pool of reflections for images of this shape."""
        generator = torch.Generator().manual_seed(self.pattern_seed)
        scale = min(height, width) / 32
        pool = []
        for picture in self._pictures(channels, height, width, generator):
            ghost, strength, where, across = torch.rand(4, generator=generator).tolist()
            light = picture.square()
            if ghost < self.ghost_rate:
                furthest = max(1, round(self.shift * scale))
                down, right = (1 + int(furthest * share) for share in (where, across))
                light = ghost_of(light, 0.15 + 0.7 * strength, down, right)
            else:
                light = out_of_focus(light, self.blur * scale * (0.2 + 0.8 * strength))
            pool.append(light)
        self.register_buffer("light", torch.cat(pool))

    def _pictures(
        self, channels: int, height: int, width: int, generator: torch.Generator
    ) -> list[Tensor]:
        if not self.pictures:
            return [
                smooth_picture(channels, height, width, generator)
                for _ in range(self.num_reflections)
            ]
        order = torch.randperm(len(self.pictures), generator=generator)[: self.num_reflections]
        chosen = [self.pictures[number] for number in order.tolist()]
        return [read_picture(path, channels, height, width) for path in chosen]


def smooth_picture(channels: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Draw soft spots of tinted light on black: 5 x 5 random levels, enlarged.

    Returns:
        ``(1, C, H, W)`` in [0, 1].
    """
    levels = torch.rand(1, 1, 5, 5, generator=generator)
    tint = 0.5 + 0.5 * torch.rand(1, channels, 1, 1, generator=generator)
    picture = functional.interpolate(levels, size=(height, width), mode="bicubic")
    darkest, brightest = picture.amin(), picture.amax()
    return (picture - darkest) / (brightest - darkest).clamp_min(1e-6) * (tint / tint.amax())


def ghost_of(light: Tensor, strength: float, down: int, right: int) -> Tensor:
    """Add to ``(1, C, H, W)`` light a shifted copy; edges are repeated.

    Args:
        light: of the picture.
        strength: of the copy, 0 to 1; the picture itself keeps the rest.
        down: shift in pixels.
        right: shift in pixels.

    Example:
        >>> point = torch.zeros(1, 1, 3, 3)
        >>> point[..., 1, 1] = 1
        >>> ghost_of(point, 0.25, 1, 1)[0, 0].tolist()
        [[0.0, 0.0, 0.0], [0.0, 0.75, 0.0], [0.0, 0.0, 0.25]]
    """
    height, width = light.shape[-2:]
    copy = functional.pad(light, (right, 0, down, 0), mode="replicate")[..., :height, :width]
    return (1 - strength) * light + strength * copy


def out_of_focus(light: Tensor, sigma: float) -> Tensor:
    r"""Blur ``(1, C, H, W)`` light with a Gaussian, cut at :math:`3 \sigma`; edges are repeated.

    Args:
        light: of the picture.
        sigma: standard deviation in pixels, above 0.

    Example:
        >>> torch.allclose(out_of_focus(torch.ones(1, 1, 4, 4), 2.0), torch.ones(1, 1, 4, 4))
        True
    """
    radius = math.ceil(3 * sigma)
    weights = torch.exp(-(torch.arange(-radius, radius + 1) / sigma).square() / 2)
    weights = (weights / weights.sum()).reshape(1, 1, 1, -1)
    # Channels as a batch: each is blurred by itself.
    planes = functional.pad(light.transpose(0, 1), [radius] * 4, mode="replicate")
    planes = functional.conv2d(functional.conv2d(planes, weights), weights.transpose(2, 3))
    return planes.transpose(0, 1).clamp(0, 1)
