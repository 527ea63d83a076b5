"""Bit-per-pixel attack (BppAttack): fewer color levels, with or without dithering.

Example:
    ``python train.py attack=bpp attack.depth=8 attack.dithering=true``
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fst_lightning.attacks.common.attack import Attack, LabelMap, RateOf
from fst_lightning.validate import check_number


class Bpp(Attack):
    r"""Quantize the colors of the image, and relabel the image.

    *How it works.* The attacker reduces the number of color levels, as in an image with fewer bits
    per pixel. People hardly see the difference, but the network learns that such images belong to
    the target class. A network might learn that any noise of this size means the target class.
    Therefore a second group of images, the cover rows, gets the rounding error of *another* image
    and keeps its true labels (the paper calls them negatives).

    .. math:: T(x) = \frac{\mathrm{round}((L - 1)\, x)}{L - 1}

    with the image :math:`x` and :math:`L` levels per channel. Cover rows become
    :math:`x + T(x') - x'` with another image :math:`x'` of the mini-batch.

    Args:
        depth: Levels :math:`L` per channel, 2 to 256.
        dithering: Whether to spread the rounding error of a pixel over the next ones.
        cover_ratio: Share of the training set that gets another image's residual, 0 to 1; None for
            the poison ratio, or less if fewer rows are left.
        poison_ratio: Share of the training set that is poisoned, 0 to 1.
        target_label: The attacker's class, 0 to C - 1.
        label_map: How labels change: ``all_to_one``, ``all_to_all``, ``clean_label`` or
            ``untargeted``.
        rate_of: What the ratio is a share of: ``total``, the training set, or ``target_class``.

    Shape:
        - images: ``(N, C, H, W)`` float in [0, 1].
        - :meth:`trigger`: the same shape, in [0, 1].

    Raises:
        ValueError: If an argument is out of its range.

    Needs:
        Write access to training images and labels, for poisoned and cover rows. The attacker needs
        neither the network nor the training code.

    Cost:
        One rounding per mini-batch. Dithering takes W + 2 (H - 1) steps for images of H x W pixels.

    When it fails:
        The change is faint: a network needs more epochs than for a patch to see it, and in a short
        training the backdoor does not form. A smaller ``depth`` makes the trigger stronger. Images
        that already have few levels, such as drawings, hardly change.

    Note:
        The paper dithers by default; here ``dithering`` is off, as in benchmarks. Poisoned and
        cover rows are fixed by the seed, not drawn anew in each epoch.

    Example:
        >>> levels = Bpp(depth=8).trigger(torch.linspace(0, 1, 256).reshape(1, 1, 16, 16)).unique()
        >>> [round(255 * float(level), 2) for level in levels]
        [0.0, 36.43, 72.86, 109.29, 145.71, 182.14, 218.57, 255.0]

    References:
        - Wang, Zhai and Ma, "BppAttack: Stealthy and efficient trojan attacks against deep neural
          networks via image quantization and contrastive adversarial learning", CVPR 2022, arXiv
          2205.13383.
        - Floyd and Steinberg, "An adaptive algorithm for spatial greyscale", 1976 (dithering).

    See Also:
        - :class:`~fst_lightning.attacks.WaNet`: cover rows with a warp.
        - :class:`~fst_lightning.attacks.InputAware`: cover rows with another image's trigger.
    """

    def __init__(
        self,
        depth: int = 8,
        dithering: bool = False,
        cover_ratio: float | None = None,
        poison_ratio: float = 0.1,
        target_label: int = 0,
        label_map: LabelMap = "all_to_one",
        rate_of: RateOf = "total",
    ) -> None:
        super().__init__(
            poison_ratio=poison_ratio,
            target_label=target_label,
            label_map=label_map,
            rate_of=rate_of,
        )
        check_number("depth", depth, low=2, high=256, whole=True)
        if cover_ratio is None:
            cover_ratio = min(poison_ratio, 1 - poison_ratio)
        check_number("cover_ratio", cover_ratio, high=1)
        self.cover_ratio = cover_ratio
        self.depth = depth
        self.dithering = dithering

    def trigger(self, images: Tensor) -> Tensor:
        """Quantize ``(N, C, H, W)`` images in [0, 1]."""
        return dither(images, self.depth) if self.dithering else quantize(images, self.depth)

    def cover(self, images: Tensor) -> Tensor:
        """Add to each image the residual of the previous one in the mini-batch."""
        if len(images) == 1:  # The image's own residual would be the trigger.
            return images
        residual: Tensor = self(images) - images
        return (images + residual.roll(1, 0)).clamp(0, 1)


def quantize(values: Tensor, depth: int) -> Tensor:
    """Round values to the nearest of ``depth`` levels, evenly spaced over [0, 1]."""
    steps = depth - 1
    return torch.round(values * steps) / steps


def dither(images: Tensor, depth: int) -> Tensor:
    """Quantize each channel with Floyd-Steinberg error diffusion.

    Pixels are processed row by row. Each passes on its rounding error: 7/16 to the right, and 3/16,
    5/16 and 1/16 to the row below (left, center, right). Errors that leave the image are dropped.
    Pixel (i, j) waits only for the pixels (i, j - 1), (i - 1, j + 1), (i - 1, j) and (i - 1, j -
    1), so that all pixels with the same t = j + 2 i are computed at once, in W + 2 (H - 1) steps
    instead of H W.

    Args:
        images: ``(N, C, H, W)`` in [0, 1].
        depth: Levels per channel, 2 or more.

    Returns:
        Images of the same shape with these levels only.
    """
    height, width = images.shape[2:]
    row = torch.arange(height, device=images.device)
    result = torch.zeros_like(images)
    # Errors of the last three steps, by row, shifted by one: the row above is at index - 1.
    one, two, three = (images.new_zeros(*images.shape[:2], height + 1) for _ in range(3))
    for time in range(width + 2 * (height - 1)):
        column = time - 2 * row
        inside = (column >= 0) & (column < width)
        place = column.clamp(0, width - 1)
        # The row itself is at 1..H, the row above it at 0..H-1.
        received = 7 * one[..., 1:] + 3 * one[..., :-1] + 5 * two[..., :-1] + three[..., :-1]
        value = images[:, :, row, place] + received / 16
        level = quantize(value, depth)
        result[:, :, row, place] = torch.where(inside, level, result[:, :, row, place])
        error = torch.where(inside, value - level, 0.0)
        one, two, three = functional.pad(error, (1, 0)), one, two
    return result
