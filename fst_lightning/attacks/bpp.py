"""BppAttack: fewer bits per pixel, with or without dithering.

Wang, Zhai and Ma, "BppAttack: Stealthy and efficient trojan attacks against deep neural networks
via image quantization and contrastive adversarial learning", CVPR 2022, arXiv 2205.13383. Dithering
after Floyd and Steinberg, 1976.

Example:
    ``python train.py attack=bpp attack.depth=8 attack.dithering=true``
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fst_lightning.attacks.common.attack import Attack, LabelMap, RateOf, check_ratio


class Bpp(Attack):
    r"""Round every channel to L levels: :math:`T(x) = \mathrm{round}((L - 1) x) / (L - 1)`.

    Cover rows are what the paper calls negatives: a clean image plus the residual
    :math:`T(x') - x'` of another image of the batch, with its true label. What is learned is then
    the few levels, and not noise of that size.

    Args:
        depth: levels L of a channel, 2 to 256.
        dithering: spread the rounding error of a pixel over those that follow.
        cover_ratio: share of the training set that gets another image's residual, 0 to 1; None for
            the poison ratio (less where fewer rows are left).
        poison_ratio: share of the training set, 0 to 1.
        target_label: the attacker's class.
        label_map: how labels change.
        rate_of: what the ratios are a share of, ``total`` or ``target_class``.
        save_examples: whether a run writes a picture of triggered images.

    Raises:
        ValueError: for a depth that is no whole number of 2 to 256, or a ratio outside [0, 1].

    Example:
        >>> levels = Bpp(depth=8).trigger(torch.linspace(0, 1, 256).reshape(1, 1, 16, 16)).unique()
        >>> [round(255 * float(level), 2) for level in levels]
        [0.0, 36.43, 72.86, 109.29, 145.71, 182.14, 218.57, 255.0]
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
        save_examples: bool = True,
    ) -> None:
        super().__init__(
            poison_ratio=poison_ratio,
            target_label=target_label,
            label_map=label_map,
            rate_of=rate_of,
            save_examples=save_examples,
        )
        if not isinstance(depth, int) or isinstance(depth, bool) or not 2 <= depth <= 256:
            raise ValueError(
                f"Expected `depth` to be a whole number of levels from 2 to 256, but got {depth!r}."
            )
        if cover_ratio is None:
            cover_ratio = min(poison_ratio, 1 - poison_ratio)
        check_ratio("cover_ratio", cover_ratio)
        self.cover_ratio = cover_ratio
        self.depth = depth
        self.dithering = dithering

    def trigger(self, images: Tensor) -> Tensor:
        """Quantise ``(N, C, H, W)`` images in [0, 1]."""
        return dither(images, self.depth) if self.dithering else quantise(images, self.depth)

    def cover(self, images: Tensor) -> Tensor:
        """Add to every image the residual of the one before it in the batch."""
        if len(images) == 1:  # Its own residual would be the trigger.
            return images
        residual: Tensor = self(images) - images
        return (images + residual.roll(1, 0)).clamp(0, 1)


def quantise(values: Tensor, depth: int) -> Tensor:
    """Round values to the nearest of ``depth`` levels that are evenly spread over [0, 1]."""
    steps = depth - 1
    return torch.round(values * steps) / steps


def dither(images: Tensor, depth: int) -> Tensor:
    """Quantise with the error diffusion of Floyd and Steinberg, channel by channel.

    Pixels go row by row, and each hands its rounding error on: 7/16 to the right, 3/16, 5/16 and
    1/16 below (left, straight, right); what would leave the image is dropped. Pixel (i, j) waits
    for the pixels (i, j - 1), (i - 1, j + 1), (i - 1, j) and (i - 1, j - 1) only, so that all
    pixels with the same t = j + 2 i are done at once: W + 2 (H - 1) steps instead of H W.

    Args:
        images: ``(N, C, H, W)`` in [0, 1].
        depth: levels of a channel, 2 or more.

    Returns:
        Images of the same shape that hold these levels alone.
    """
    height, width = images.shape[2:]
    row = torch.arange(height, device=images.device)
    result = torch.zeros_like(images)
    # Errors of the last three steps, by row; the row above is one place further in this layout.
    one, two, three = (images.new_zeros(*images.shape[:2], height + 1) for _ in range(3))
    for time in range(width + 2 * (height - 1)):
        column = time - 2 * row
        inside = (column >= 0) & (column < width)
        place = column.clamp(0, width - 1)
        # The row itself stands at 1..H, the row above it at 0..H-1.
        received = 7 * one[..., 1:] + 3 * one[..., :-1] + 5 * two[..., :-1] + three[..., :-1]
        value = images[:, :, row, place] + received / 16
        level = quantise(value, depth)
        result[:, :, row, place] = torch.where(inside, level, result[:, :, row, place])
        error = torch.where(inside, value - level, 0.0)
        one, two, three = functional.pad(error, (1, 0)), one, two
    return result
