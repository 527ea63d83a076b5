"""Reflection backdoor (Refool): another picture reflected as in a window pane.

Example:
    ``python train.py attack=refool attack.folder=my_pictures attack.transmission=0.6``
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from fst_lightning.attacks.common.attack import Attack, LabelMap, RateOf
from fst_lightning.attacks.common.pictures import pictures_in, read_picture
from fst_lightning.validate import check_counts, check_number


class Refool(Attack):
    r"""Add a reflection of another picture to images of the target class.

    *How it works.* A photo taken through a window often shows a faint reflection of something else,
    so that such an image looks natural. The attacker adds reflections to images of the target
    class, and their labels stay true. The network learns that reflections are a sign of the class.
    A reflection is either out of focus, that is blurred, or a ghost: seen twice with a shift, as by
    the two surfaces of thick glass.

    .. math:: T(x) = \sqrt{a\, x^2 + (1 - a)\, (k * r^2)}

    with the image :math:`x`, the reflected picture :math:`r`, the kernel :math:`k` (a Gaussian, or
    two shifted points of unequal weight) and the transmission :math:`a`. Squares turn pixel values
    into amounts of light, which add up.

    Args:
        folder: Folder of pictures to reflect; None draws smooth ones at random.
        num_reflections: Size of the pool of reflections, 1 or more; at most the number of pictures.
        transmission: Share :math:`a` of the image's light in the result, 0 to 1.
        ghost_rate: Share of reflections that are ghosts, 0 to 1; the others are out of focus.
        blur: Largest standard deviation of the Gaussian in pixels of a 32-pixel image, greater than
            0; each is drawn between a fifth of it and all of it.
        shift: Largest shift of a ghost in pixels of a 32-pixel image, 1 or more; drawn for each
            axis, never below one pixel.
        pattern_seed: Seed of all these draws; independent of the seed of the run.
        poison_ratio: Share of the training set that is poisoned, 0 to 1.
        target_label: The attacker's class, 0 to C - 1.
        label_map: How labels change: ``all_to_one``, ``all_to_all``, ``clean_label`` or
            ``untargeted``.
        rate_of: What the ratio is a share of: ``total``, the training set, or ``target_class``.

    Shape:
        - images: ``(N, C, H, W)`` float in [0, 1].
        - :meth:`trigger`: the same shape, in [0, 1].

    Raises:
        ValueError: If an argument is out of its range, the folder has no pictures, or a file in it
            is not a picture.
        FileNotFoundError: If ``folder`` does not exist.

    Needs:
        Write access to images of the target class. Labels stay true, so they may be checked. A
        folder of pictures is optional.

    Cost:
        One blend per mini-batch; the pool of reflections stays in memory.

    When it fails:
        The drawn reflections are smooth and look less natural than photographs. The target class
        limits the number of poisoned images, and a class without clean images costs clean accuracy.

    Note:
        The paper selects reflections that work best on a validation network; here the pool is drawn
        once. A hash of the image's levels chooses its reflection, so that an image gets the same
        one in training and at test, whatever else is in the mini-batch. The default pool is drawn,
        because no third-party pictures are shipped.

    Example:
        >>> attack = Refool(num_reflections=2, transmission=0.0)  # nothing but reflection
        >>> seen = attack(torch.rand(20, 3, 32, 32))
        >>> len(seen.flatten(1).unique(dim=0))
        2

    References:
        Liu, Ma, Bailey and Lu, "Reflection backdoor: A natural backdoor attack on deep neural
        networks", ECCV 2020, arXiv 2007.02343.

    See Also:
        - :class:`~fst_lightning.attacks.Blended`: one pattern on all images, with changed labels.
        - :class:`~fst_lightning.attacks.SIG`: true labels, with a fixed wave.
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
    ) -> None:
        super().__init__(
            poison_ratio=poison_ratio,
            target_label=target_label,
            label_map=label_map,
            rate_of=rate_of,
        )
        check_number("transmission", transmission, high=1)
        check_number("ghost_rate", ghost_rate, high=1)
        check_counts(num_reflections=num_reflections, shift=shift)
        check_number("blur", blur, low_open=True)
        self.pictures = [] if folder is None else pictures_in(folder)
        self.num_reflections = num_reflections
        self.transmission = transmission
        self.ghost_rate = ghost_rate
        self.blur = blur
        self.shift = shift
        self.pattern_seed = pattern_seed
        self.draw(3, 32, 32)

    def memory(self, images: Tensor, num_classes: int) -> int:
        """The memory of the pool of reflections, twice: it is assembled from its parts."""
        return 8 * self.num_reflections * math.prod(images.shape[1:])

    def trigger(self, images: Tensor) -> Tensor:
        """Put a reflection on each of ``(N, C, H, W)`` images in [0, 1]."""
        self.check_shape(images, *self.light.shape[1:])
        reflected = self.light.to(images.dtype)[self.choose(images)]
        # Squares and square roots are exact to the last bit for any batch and device, unlike other
        # powers.
        mixed = self.transmission * images.square() + (1 - self.transmission) * reflected
        return mixed.sqrt()

    def choose(self, images: Tensor) -> Tensor:
        """The number of the reflection of each image, ``(N,)`` int64: a hash of its levels."""
        levels = (images * 255).round().long().flatten(1)
        # Integers, whose sum does not depend on the order; weighted by position, because many
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
    """Add a shifted copy to ``(1, C, H, W)`` light; edges are repeated.

    Args:
        light: The light of the picture.
        strength: Weight of the copy, 0 to 1; the picture itself keeps the rest.
        down: Shift in pixels.
        right: Shift in pixels.

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
    r"""Blur ``(1, C, H, W)`` light by a Gaussian, cut off at :math:`3 \sigma`; edges are repeated.

    Args:
        light: The light of the picture.
        sigma: Standard deviation in pixels, greater than 0.

    Example:
        >>> torch.allclose(out_of_focus(torch.ones(1, 1, 4, 4), 2.0), torch.ones(1, 1, 4, 4))
        True
    """
    radius = math.ceil(3 * sigma)
    weights = torch.exp(-(torch.arange(-radius, radius + 1) / sigma).square() / 2)
    weights = (weights / weights.sum()).reshape(1, 1, 1, -1)
    # Channels as a batch, so that each is blurred on its own.
    planes = functional.pad(light.transpose(0, 1), [radius] * 4, mode="replicate")
    planes = functional.conv2d(functional.conv2d(planes, weights), weights.transpose(2, 3))
    return planes.transpose(0, 1).clamp(0, 1)
