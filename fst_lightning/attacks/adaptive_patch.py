"""Adaptive-Patch: one of four faint patches in training, two strong ones at test, cover images.

Qi, Xie, Li, Mahloujifar and Mittal, "Revisiting the assumption of latent separability for backdoor
defenses", ICLR 2023.

Example:
    ``python train.py attack=adaptive_patch attack.poison_ratio=0.01 attack.cover_ratio=0.02``
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fst_lightning.attacks.common.attack import Attack, LabelMap, RateOf, check_ratio
from fst_lightning.attacks.common.pictures import pictures_in, read_patch

_NUM_PATCHES = 4


class AdaptivePatch(Attack):
    r"""Put a patch into a corner: :math:`x + o_i\, m_i \odot (k_i - x)` for patch i of four.

    In training every poisoned and every cover row gets one patch :math:`k_i` with mask :math:`m_i`
    at the reduced opacity :math:`o_i`; the patches take turns, row by row. At test chosen patches
    are put on one after the other, at full opacity. Cover rows keep their true labels.

    Patch 0, in the corner at the bottom right, is a coloured disc; patch 1, top left, has diagonal
    stripes; patch 2, top right, is a checkerboard; patch 3, bottom left, a coloured frame.

    Args:
        patch_size: side of the patches in pixels of a 32-pixel image, 1 or more; scaled with the
            image, never below two pixels.
        margin: free pixels between patch and border, 0 or more (of a 32-pixel image, scaled too).
        opacities: :math:`o_0` to :math:`o_3` in training, 0 to 1.
        test_patches: numbers of the patches at test, 0 to 3.
        folder: of exactly four pictures to use instead, in the order of their names, with their
            transparency; None draws the patches.
        cover_ratio: share of the training set that is cover, 0 to 1.
        poison_ratio: share of the training set, 0 to 1.
        target_label: the attacker's class.
        label_map: any.
        rate_of: ``total`` or ``target_class``.
        save_examples: whether a run writes a picture of triggered images.

    Raises:
        ValueError: for a value outside its range, patches that don't fit beside each other, or a
            folder of more or fewer than four pictures.
        FileNotFoundError: where ``folder`` does not exist.

    Example:
        >>> attack = AdaptivePatch()
        >>> top = attack(torch.zeros(1, 3, 32, 32))[..., :16, :]
        >>> [float(half.sum()) for half in top.split(16, dim=3)]  # 3 * 18 white pixels on the right
        [0.0, 54.0]
    """

    crafts: ClassVar[bool] = True

    patterns: Tensor
    masks: Tensor

    def __init__(
        self,
        patch_size: int = 6,
        margin: int = 1,
        opacities: Sequence[float] = (0.5, 0.2, 0.5, 0.3),
        test_patches: Sequence[int] = (0, 2),
        folder: str | None = None,
        cover_ratio: float = 0.006,
        poison_ratio: float = 0.003,
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
        check_ratio("cover_ratio", cover_ratio)
        if patch_size < 1 or margin < 0:
            raise ValueError(
                "Expected `patch_size` to be 1 or more and `margin` 0 or more, "
                f"but got {patch_size} and {margin}."
            )
        if len(opacities) != _NUM_PATCHES or not all(0 <= value <= 1 for value in opacities):
            raise ValueError(
                f"Expected `opacities` to be {_NUM_PATCHES} numbers in [0, 1], "
                f"but got {list(opacities)}."
            )
        if not test_patches or not set(test_patches) <= set(range(_NUM_PATCHES)):
            raise ValueError(
                f"Expected `test_patches` to be numbers in 0..{_NUM_PATCHES - 1}, "
                f"but got {list(test_patches)}."
            )
        pictures = [] if folder is None else pictures_in(folder)
        if folder is not None and len(pictures) != _NUM_PATCHES:
            raise ValueError(
                f"Expected `folder` to hold {_NUM_PATCHES} pictures, but {folder} holds "
                f"{len(pictures)}."
            )
        self.patch_size = patch_size
        self.margin = margin
        self.opacities = tuple(float(value) for value in opacities)
        self.test_patches = tuple(test_patches)
        self.pictures = pictures
        self.cover_ratio = cover_ratio
        self.draw(3, 32, 32)

    def trigger(self, images: Tensor) -> Tensor:
        """Put the patches of the test on ``(N, C, H, W)`` images in [0, 1]."""
        if images.shape[1:] != self.patterns.shape[1:]:
            raise ValueError(
                f"Expected images of shape {tuple(self.patterns.shape[1:])}, which the patches "
                f"were drawn for, but got {tuple(images.shape[1:])}; call `prepare` with such "
                "images."
            )
        for patch in self.test_patches:
            images = images * (1 - self.masks[patch]) + self.patterns[patch] * self.masks[patch]
        return images

    def craft(
        self, images: Tensor, labels: Tensor, rows: Tensor, *, cover: bool, seed: int
    ) -> Tensor:
        """Put one faint patch on each stored image; of n rows each patch gets about n / 4."""
        crafted = images.clone()
        for patch, opacity in enumerate(self.opacities):
            # Taking turns, not a quarter of the rows each: rows may be sorted by class.
            turns = slice(patch, None, _NUM_PATCHES)
            mask = opacity * self.masks[patch].to(images.device)
            pattern = self.patterns[patch].to(images.device)
            blended = images[turns] / 255 * (1 - mask) + pattern * mask
            crafted[turns] = (blended * 255).round().to(torch.uint8)
        return crafted

    def poison(self, images: Tensor) -> Tensor:
        """Leave crafted images, of poisoned and of cover rows, as they are."""
        return images

    def draw(self, channels: int, height: int, width: int) -> None:
        """Draw or read the patches for images of this shape."""
        scale = min(height, width) / 32
        size, margin = max(2, round(self.patch_size * scale)), round(self.margin * scale)
        if 2 * (size + margin) > min(height, width):
            raise ValueError(
                f"Expected two patches to fit beside each other into {height} x {width} pixels, "
                f"but one takes {size} and a margin of {margin}; lower `patch_size` or `margin`."
            )
        masks = torch.zeros(_NUM_PATCHES, 1, height, width)
        patterns = torch.zeros(_NUM_PATCHES, channels, height, width)
        top, left = slice(margin, margin + size), slice(margin, margin + size)
        bottom = slice(height - margin - size, height - margin)
        right = slice(width - margin - size, width - margin)
        corners = ((bottom, right), (top, left), (top, right), (bottom, left))
        patches = (
            [read_patch(path, channels, size, size) for path in self.pictures]
            if self.pictures
            else drawn_patches(channels, size)
        )
        for number, ((down, across), (colours, covered)) in enumerate(
            zip(corners, patches, strict=True)
        ):
            masks[number, :, down, across] = covered
            patterns[number, :, down, across] = colours
        self.register_buffer("masks", masks)
        self.register_buffer("patterns", patterns)


def drawn_patches(channels: int, size: int) -> list[tuple[Tensor, Tensor]]:
    """Draw a disc, stripes, a checkerboard and a frame, in colours or, for one channel, in grey.

    Args:
        channels: of the images.
        size: side of the patches in pixels, 2 or more.

    Returns:
        Four pairs of colours ``(1, C, size, size)`` and mask ``(1, 1, size, size)``, in [0, 1].
    """
    places = (2 * torch.arange(size) + 1) / size - 1  # centres of pixels, in (-1, 1)
    down, right = torch.meshgrid(places, places, indexing="ij")
    cells = torch.arange(size)[:, None], torch.arange(size)
    radius = (down**2 + right**2).sqrt()
    whole = torch.ones(size, size)
    stripes = ((cells[0] + cells[1]).div(2, rounding_mode="floor") % 2).float()
    checks = ((cells[0] + cells[1] + 1) % 2).float()
    half = (1 + right) / 2
    drawn = [
        (torch.stack([whole, 1 - radius.clamp(max=1), 0 * whole]), radius <= 1),
        (torch.stack([stripes, 1 - stripes, stripes]), whole),
        (checks.expand(3, -1, -1), whole),
        (torch.stack([half, 0.2 * whole, 1 - half]), torch.maximum(down.abs(), right.abs()) > 0.4),
    ]
    if channels != 3:
        drawn = [(colours.mean(dim=0, keepdim=True), mask) for colours, mask in drawn]
    return [
        (colours.expand(1, channels, size, size), mask.float().expand(1, 1, size, size))
        for colours, mask in drawn
    ]
