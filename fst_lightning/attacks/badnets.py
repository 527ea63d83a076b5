"""BadNets: a small patch at a fixed place.

Gu, Dolan-Gavitt and Garg, "BadNets: Identifying vulnerabilities in the machine learning model
supply chain", 2017, arXiv 1708.06733.

Example:
    ``python train.py attack=badnets attack.patch=checkerboard attack.corner=top_left``
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from fst_lightning.attacks.attack import Attack, LabelMap

Patch = Literal["square", "checkerboard"]
Corner = Literal["top_left", "top_right", "bottom_left", "bottom_right"]


class BadNets(Attack):
    r"""Replace the pixels under a patch: :math:`T(x) = (1 - m) \odot x + m \odot \delta`.

    The mask :math:`m` and the pattern :math:`\delta` are kept apart, so that black is a colour of
    the patch like any other.

    Args:
        patch: ``square`` (white) or ``checkerboard`` (black and white, pixel by pixel).
        patch_size: side of the patch in pixels of a 32-pixel image, 1 or more; it is scaled with
            the image, never below one pixel.
        corner: where the patch sits.
        margin: free pixels between patch and border, 0 or more (of a 32-pixel image, scaled too).
        poison_ratio: share of the training set, 0 to 1.
        target_label: the attacker's class.
        label_map: ``all_to_one`` or ``all_to_all``.

    Raises:
        ValueError: for an unknown patch or corner, or a patch larger than the image.

    Example:
        >>> attack = BadNets(patch_size=3)
        >>> float(attack(torch.zeros(1, 3, 32, 32)).sum())  # 3 x 3 white pixels, 3 channels
        27.0
    """

    mask: Tensor
    pattern: Tensor

    def __init__(
        self,
        patch: Patch = "square",
        patch_size: int = 3,
        corner: Corner = "bottom_right",
        margin: int = 0,
        poison_ratio: float = 0.05,
        target_label: int = 0,
        label_map: LabelMap = "all_to_one",
    ) -> None:
        super().__init__(poison_ratio, target_label, label_map)
        if patch not in get_args(Patch):
            valid = ", ".join(get_args(Patch))
            raise ValueError(f"Expected `patch` to be one of {valid}, but got {patch!r}.")
        if corner not in get_args(Corner):
            valid = ", ".join(get_args(Corner))
            raise ValueError(f"Expected `corner` to be one of {valid}, but got {corner!r}.")
        if patch_size < 1 or margin < 0:
            raise ValueError(
                "Expected `patch_size` to be 1 or more and `margin` 0 or more, "
                f"but got {patch_size} and {margin}."
            )
        self.patch = patch
        self.patch_size = patch_size
        self.corner = corner
        self.margin = margin
        self._draw(32, 32)

    def prepare(self, images: Tensor, labels: Tensor, num_classes: int, seed: int) -> None:
        """Draw mask and pattern for images of this size."""
        self._draw(images.shape[-2], images.shape[-1])

    def trigger(self, images: Tensor) -> Tensor:
        """Stamp the patch on ``(N, C, H, W)`` images in [0, 1]."""
        if images.shape[-2:] != self.mask.shape[-2:]:
            height, width = self.mask.shape[-2:]
            raise ValueError(
                f"Expected images of {height} x {width} pixels, which the patch was drawn for, but "
                f"got {images.shape[-2]} x {images.shape[-1]}; call `prepare` with such images."
            )
        return images * (1 - self.mask) + self.pattern * self.mask

    def _draw(self, height: int, width: int) -> None:
        scale = min(height, width) / 32
        size = max(1, round(self.patch_size * scale))
        margin = round(self.margin * scale)
        if size + margin > min(height, width):
            raise ValueError(
                f"Expected the patch to fit into {height} x {width} pixels, but it takes {size} "
                f"and a margin of {margin}; lower `patch_size` or `margin`."
            )
        down, right = self.corner.split("_")
        top = margin if down == "top" else height - margin - size
        left = margin if right == "left" else width - margin - size
        cells = torch.ones(size, size)
        if self.patch == "checkerboard":
            cells = (torch.arange(size)[:, None] + torch.arange(size) + 1).remainder(2).float()
        mask = torch.zeros(1, 1, height, width)
        pattern = torch.zeros(1, 1, height, width)
        mask[..., top : top + size, left : left + size] = 1
        pattern[..., top : top + size, left : left + size] = cells
        self.register_buffer("mask", mask)
        self.register_buffer("pattern", pattern)
