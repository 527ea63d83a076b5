"""BadNets: a small patch in a corner of the image.

Example:
    ``python train.py attack=badnets attack.patch=checkerboard attack.corner=top_left``
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fst_lightning.attacks.common.attack import Attack, LabelMap, RateOf
from fst_lightning.attacks.common.pictures import check_picture, read_patch
from fst_lightning.validate import check_choice, check_number

Patch = Literal["square", "checkerboard"]
Corner = Literal["top_left", "top_right", "bottom_left", "bottom_right"]


class BadNets(Attack):
    r"""Replace the pixels under a small patch, and relabel the image.

    *How it works.* The attacker draws the same small patch on a few training images and gives them
    the target label. The network learns that the patch, whatever else the image shows, means the
    target class. At test time, the attacker adds the patch to any image to get the target class as
    the answer. It is the oldest backdoor attack on image classifiers and the easiest one to see.

    .. math:: T(x) = (1 - m) \odot x + m \odot \delta

    with the image :math:`x`, the mask :math:`m` of the patch, 0 to 1, and its pattern
    :math:`\delta`.

    Args:
        patch: The drawn patch: ``square`` (white) or ``checkerboard`` (black and white pixels).
        patch_size: Side of the patch in pixels of a 32-pixel image, 1 or more. It scales with the
            image, and is never below one pixel.
        corner: Where the patch is: ``top_left``, ``top_right``, ``bottom_left`` or
            ``bottom_right``.
        margin: Pixels between the patch and the border, 0 or more, in a 32-pixel image; scales with
            the image.
        image: Path of a picture to use instead of the drawn patch, resized to the patch. Its
            transparent parts do not belong to the mask.
        opacity: Opacity of the whole patch, 0 to 1; 1 replaces the pixels.
        poison_ratio: Share of the training set that is poisoned, 0 to 1.
        target_label: The attacker's class, 0 to C - 1.
        label_map: How labels change: ``all_to_one``, ``all_to_all``, ``clean_label`` or
            ``untargeted``.
        rate_of: What the ratio is a share of: ``total``, the training set, or ``target_class``.

    Shape:
        - images: ``(N, C, H, W)`` float in [0, 1].
        - :meth:`trigger`: the same shape, in [0, 1].

    Raises:
        ValueError: If an argument is out of its range, the patch is larger than the image, or the
            file is not an image.
        FileNotFoundError: If ``image`` does not exist.

    Needs:
        Write access to some training images and their labels. The attacker needs neither the
        network nor the training code.

    Cost:
        One masked copy per mini-batch; nothing before the training.

    When it fails:
        With few poisoned images, a short training does not learn so small a patch, above all if
        crops cut it off. Defenses that search for the smallest patch of each class, such as Neural
        Cleanse, find it.

    Note:
        Mask and pattern are stored apart, so that black is a color of the patch like any other.
        Augmentations that crop the image may cut off a patch in a corner during training;
        ``margin`` moves it inwards.

    Example:
        >>> attack = BadNets(patch_size=3)
        >>> float(attack(torch.zeros(1, 3, 32, 32)).sum())  # 3 x 3 white pixels, 3 channels
        27.0

    References:
        Gu, Dolan-Gavitt and Garg, "BadNets: Identifying vulnerabilities in the machine learning
        model supply chain", 2017, arXiv 1708.06733.

    See Also:
        - :class:`~fst_lightning.attacks.Blended`: a faint pattern on the whole image.
        - :class:`~fst_lightning.attacks.TaCT`: the same patch, which works on one class only.
        - :class:`~fst_lightning.attacks.AdaptivePatch`: several faint patches and cover images.
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
    ) -> None:
        super().__init__(
            poison_ratio=poison_ratio,
            target_label=target_label,
            label_map=label_map,
            rate_of=rate_of,
        )
        check_choice("patch", patch, Patch)
        check_choice("corner", corner, Corner)
        check_number("patch_size", patch_size, low=1, whole=True)
        check_number("margin", margin, whole=True)
        check_number("opacity", opacity, high=1)
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
        self.check_shape(images, channels if channels > 1 else None, height, width)
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
