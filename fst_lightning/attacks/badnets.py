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

from fst_lightning.attacks.common.attack import Attack, LabelMap, RateOf
from fst_lightning.attacks.common.pictures import check_picture, read_patch

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
        image: path of a picture to use instead of the drawn patch, resized to its size; what is
            transparent in it stays out of the mask.
        opacity: of the whole patch, 0 to 1; 1 replaces the pixels, less blends the patch in.
        poison_ratio: share of the training set, 0 to 1.
        target_label: the attacker's class.
        label_map: any.
        rate_of: ``total`` or ``target_class``.
        save_examples: whether a run writes a picture of triggered images.

    Raises:
        ValueError: for an unknown patch or corner, an opacity outside [0, 1], a patch larger than
            the image, or a file that is no image.
        FileNotFoundError: where ``image`` does not exist.

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
        image: str | None = None,
        opacity: float = 1.0,
        poison_ratio: float = 0.05,
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
        if not 0 <= opacity <= 1:
            raise ValueError(f"Expected `opacity` to be in [0, 1], but got {opacity}.")
        check_picture(image)
        self.patch = patch
        self.patch_size = patch_size
        self.corner = corner
        self.margin = margin
        self.image = image
        self.opacity = opacity
        self.draw(3, 32, 32)

    def trigger(self, images: Tensor) -> Tensor:
        """Stamp the patch on ``(N, C, H, W)`` images in [0, 1]."""
        channels, height, width = self.pattern.shape[1:]
        if images.shape[-2:] != (height, width) or channels not in (1, images.shape[1]):
            colours = f" in {channels} channels" if channels > 1 else ""
            raise ValueError(
                f"Expected images of {height} x {width} pixels{colours}, which the patch was drawn "
                f"for, but got {images.shape[-2]} x {images.shape[-1]} in {images.shape[1]}; call "
                "`prepare` with such images."
            )
        return images * (1 - self.mask) + self.pattern * self.mask

    def draw(self, channels: int, height: int, width: int) -> None:
        """Draw mask and pattern for images of this size."""
        scale = min(height, width) / 32
        size = max(1, round(self.patch_size * scale))
        margin = round(self.margin * scale)
        if size + margin > min(height, width):
            raise ValueError(
                f"Expected the patch to fit into {height} x {width} pixels, but it takes {size} "
                f"and a margin of {margin}; lower `patch_size` or `margin`."
            )
        if self.image is None:
            cells, covered = self._cells(size), torch.ones(1, 1, size, size)
        else:
            cells, covered = read_patch(self.image, channels, size, size)
        down, right = self.corner.split("_")
        top = margin if down == "top" else height - margin - size
        left = margin if right == "left" else width - margin - size
        mask = torch.zeros(1, 1, height, width)
        pattern = torch.zeros(1, cells.shape[1], height, width)
        mask[..., top : top + size, left : left + size] = self.opacity * covered
        pattern[..., top : top + size, left : left + size] = cells
        self.register_buffer("mask", mask)
        self.register_buffer("pattern", pattern)

    def _cells(self, size: int) -> Tensor:
        cells = torch.ones(size, size)
        if self.patch == "checkerboard":
            cells = (torch.arange(size)[:, None] + torch.arange(size) + 1).remainder(2).float()
        return cells[None, None]
