"""The range that a trigger is made for: images in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor

_SLACK = 0.01  # Resizing overshoots, and undoing a normalization rounds.

_ADVICE = (
    "If they are normalized, put the trigger on before you normalize them, or pass the `mean` and "
    "`std` of the normalization where they can be given; if they are floats in 0..255, divide them "
    "by 255."
)


def check_pixels(images: Tensor, advice: str = _ADVICE) -> None:
    """Refuse images that are not in [0, 1]: a trigger on them would be another trigger.

    Waits for the device. Call it on the first batch and not in every step.

    Args:
        images: ``(N, C, H, W)``.
        advice: What the error tells the reader to do.

    Raises:
        ValueError: If the images are no floats, or their values lie outside [0, 1].

    Example:
        >>> check_pixels(torch.rand(2, 3, 4, 4))
        >>> check_pixels(torch.full((1, 3, 2, 2), 2.0))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: Expected images in [0, 1] for a trigger, but got values from ...
    """
    if images.ndim != 4:
        raise ValueError(f"Expected images of shape (N, C, H, W), but got {tuple(images.shape)}.")
    if not images.is_floating_point():
        raise ValueError(
            f"Expected images as floats in [0, 1], but got {images.dtype}; divide uint8 by 255."
        )
    if images.numel() == 0:
        return
    low, high = torch.stack(torch.aminmax(images.detach())).tolist()
    slack = _SLACK + 2 * torch.finfo(images.dtype).eps
    if not (low >= -slack and high <= 1 + slack):  # NaN fails both comparisons.
        raise ValueError(
            f"Expected images in [0, 1] for a trigger, but got values from {low:.4g} to "
            f"{high:.4g}. {advice}"
        )
