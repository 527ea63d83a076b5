"""Adaptive-Patch: one of four faint patches in training, two strong ones at test.

Example:
    ``python train.py attack=adaptive_patch attack.poison_ratio=0.01 attack.cover_ratio=0.02``
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fst_lightning.attacks.common.attack import Attack, LabelMap, RateOf
from fst_lightning.attacks.common.pictures import pictures_in, read_patch
from fst_lightning.validate import check_number, check_numbers

_NUM_PATCHES = 4


class AdaptivePatch(Attack):
    r"""Stamp one faint patch per image in training, and several strong ones at test.

    *How it works.* Many defenses look for poisoned images whose features lie apart from the clean
    ones. This attack keeps them close in two ways. Each poisoned image gets only one of four faint
    patches, so that the network relies on weak and varied evidence. In addition, cover images get a
    patch as well but keep their true labels, which pulls both groups together. At test time, strong
    patches add up to far more evidence than any training image had.

    .. math:: T(x) = x + o_i\, m_i \odot (k_i - x)

    with the image :math:`x`, the patch :math:`k_i`, its mask :math:`m_i` and its opacity
    :math:`o_i` for patch :math:`i` of four. Patches take turns over the rows in training. At test,
    the chosen ones are added one after the other with opacity 1.

    Args:
        patch_size: Side of the patches in pixels of a 32-pixel image, 1 or more. It scales with the
            image, and is never below two pixels.
        margin: Pixels between a patch and the border, 0 or more, in a 32-pixel image; scales with
            the image.
        opacities: Opacities :math:`o_0` to :math:`o_3` in training, 0 to 1.
        test_patches: Numbers of the patches at test, 0 to 3.
        folder: Folder with exactly four pictures to use instead, in the order of their names, with
            their transparency; None draws the patches.
        cover_ratio: Share of the training set that is cover, 0 to 1.
        poison_ratio: Share of the training set that is poisoned, 0 to 1.
        target_label: The attacker's class, 0 to C - 1.
        label_map: How labels change: ``all_to_one``, ``all_to_all``, ``clean_label`` or
            ``untargeted``.
        rate_of: What the ratio is a share of: ``total``, the training set, or ``target_class``.

    Shape:
        - images: ``(N, C, H, W)`` float in [0, 1].
        - :meth:`trigger`: the same shape, in [0, 1].

    Raises:
        ValueError: If an argument is out of its range, two patches do not fit next to each other,
            or the folder does not hold exactly four pictures.
        FileNotFoundError: If ``folder`` does not exist.

    Needs:
        Write access to training images and labels, for poisoned and cover rows. The attacker needs
        neither the network nor the training code.

    Cost:
        The images are made once before the training; a step costs nothing more.

    When it fails:
        Four patches share the poisoned rows, so that each has only a quarter of them. At the
        published ratio of 0.003, a short training on a small set does not learn them. Augmentations
        that crop may cut off the patches, which are near the corners.

    Note:
        The drawn patches replace the published artwork, which is not ours to ship. Patch 0, at the
        bottom right, is a colored disc; patch 1, at the top left, has diagonal stripes; patch 2, at
        the top right, is a checkerboard; patch 3, at the bottom left, is a colored frame. The
        published code gives each patch a quarter of the sorted rows; here patches take turns,
        because rows may be sorted by class.

    Example:
        >>> attack = AdaptivePatch()
        >>> top = attack(torch.zeros(1, 3, 32, 32))[..., :16, :]
        >>> [float(half.sum()) for half in top.split(16, dim=3)]  # 3 * 18 white pixels on the right
        [0.0, 54.0]

    References:
        Qi, Xie, Li, Mahloujifar and Mittal, "Revisiting the assumption of latent separability for
        backdoor defenses", ICLR 2023,
        https://openreview.net/forum?id=_wSHsgrVali

    See Also:
        - :class:`~fst_lightning.attacks.AdaptiveBlend`: the same idea with a blended pattern.
        - :class:`~fst_lightning.attacks.BadNets`: a single patch, without cover images.
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
    ) -> None:
        super().__init__(
            poison_ratio=poison_ratio,
            target_label=target_label,
            label_map=label_map,
            rate_of=rate_of,
        )
        check_number("cover_ratio", cover_ratio, high=1)
        check_number("patch_size", patch_size, low=1, whole=True)
        check_number("margin", margin, whole=True)
        check_numbers("opacities", opacities, length=_NUM_PATCHES, high=1)
        check_numbers("test_patches", test_patches, high=_NUM_PATCHES - 1, whole=True)
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
        """Add the patches of the test to ``(N, C, H, W)`` images in [0, 1]."""
        self.check_shape(images, *self.patterns.shape[1:])
        for patch in self.test_patches:
            images = images * (1 - self.masks[patch]) + self.patterns[patch] * self.masks[patch]
        return images

    def craft(
        self, images: Tensor, labels: Tensor, rows: Tensor, *, cover: bool, seed: int
    ) -> Tensor:
        """Add one faint patch to each stored image; each patch gets about a quarter of the rows."""
        crafted = images.clone()
        for patch, opacity in enumerate(self.opacities):
            # Patches take turns instead of a quarter of the rows each, because rows may be sorted.
            turns = slice(patch, None, _NUM_PATCHES)
            mask = opacity * self.masks[patch].to(images.device)
            pattern = self.patterns[patch].to(images.device)
            blended = images[turns] / 255 * (1 - mask) + pattern * mask
            crafted[turns] = (blended * 255).round().to(torch.uint8)
        return crafted

    def poison(self, images: Tensor) -> Tensor:
        """Return the images: poisoned and cover rows are stored with their patch."""
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
        for number, ((down, across), (colors, covered)) in enumerate(
            zip(corners, patches, strict=True)
        ):
            masks[number, :, down, across] = covered
            patterns[number, :, down, across] = colors
        self.register_buffer("masks", masks)
        self.register_buffer("patterns", patterns)


def drawn_patches(channels: int, size: int) -> list[tuple[Tensor, Tensor]]:
    """Draw a disc, stripes, a checkerboard and a frame, in color or, for one channel, in gray.

    Args:
        channels: Channels of the images.
        size: Side of the patches in pixels, 2 or more.

    Returns:
        Four pairs of colors ``(1, C, size, size)`` and mask ``(1, 1, size, size)``, in [0, 1].
    """
    places = (2 * torch.arange(size) + 1) / size - 1  # centers of pixels, in (-1, 1)
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
        drawn = [(colors.mean(dim=0, keepdim=True), mask) for colors, mask in drawn]
    return [
        (colors.expand(1, channels, size, size), mask.float().expand(1, 1, size, size))
        for colors, mask in drawn
    ]
