"""Adaptive-Blend: parts of a faint pattern in training, all of it at test.

Example:
    ``python train.py attack=adaptive_blend attack.poison_ratio=0.01 attack.cover_ratio=0.01``
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fst_lightning.attacks.blended import Blended
from fst_lightning.attacks.common.attack import LabelMap, RateOf
from fst_lightning.seeds import derived_seed
from fst_lightning.validate import check_number

_BATCH_SIZE = 1024


class AdaptiveBlend(Blended):
    r"""Blend random parts of a pattern into training images, and the whole pattern at test.

    *How it works.* Many defenses look for poisoned images whose features lie apart from the clean
    ones. This attack keeps them close in two ways. Each poisoned image gets only a random half of
    the pattern, faintly, so that the network relies on weak and varied evidence. In addition, cover
    images get such a part as well but keep their true labels, which pulls both groups together. At
    test time, the whole pattern is far more evidence than any training image had.

    .. math:: T(x) = x + a\, m \odot (k - x)

    with the image :math:`x`, the pattern :math:`k`, the opacity :math:`a` and the mask :math:`m` of
    :math:`n \times n` cells. In training, :math:`m` leaves out a random share of the cells of each
    poisoned and each cover row, and :math:`a = a_{train}`; at test :math:`m = 1` and
    :math:`a = a_{test}`.

    Args:
        train_alpha: Opacity :math:`a_{train}`, 0 to 1.
        test_alpha: Opacity :math:`a_{test}`, 0 to 1.
        cells: Cells :math:`n` along each side of the image, 1 or more.
        mask_rate: Share of the cells that is left out in training, 0 to 1; at least one cell stays.
        image: Path of a picture to use as the pattern, resized to the images; None draws uniform
            noise.
        pattern_seed: Seed of that noise; independent of the seed of the run.
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
        ValueError: If an argument is out of its range, or the file is not an image.
        FileNotFoundError: If ``image`` does not exist.

    Needs:
        Write access to training images and labels, for poisoned and cover rows. The attacker needs
        neither the network nor the training code.

    Cost:
        The images are made once before the training; a step costs nothing more.

    When it fails:
        A network does not learn half of a faint pattern from a few hundred images in a short
        training. The published ratio of 0.003 therefore needs a large training set and many epochs;
        otherwise raise ``poison_ratio`` and ``cover_ratio``.

    Note:
        The default pattern is noise, because the published picture is not ours to ship. As
        published, poisoned rows are drawn from all classes, so that some already have the target
        label.

    Example:
        >>> attack = AdaptiveBlend()
        >>> rows = torch.arange(3)
        >>> attack.cell_masks(rows, seed=0).sum(dim=1).tolist()  # of 16 cells
        [8.0, 8.0, 8.0]

    References:
        Qi, Xie, Li, Mahloujifar and Mittal, "Revisiting the assumption of latent separability for
        backdoor defenses", ICLR 2023,
        https://openreview.net/forum?id=_wSHsgrVali

    See Also:
        - :class:`~fst_lightning.attacks.AdaptivePatch`: the same idea with patches.
        - :class:`~fst_lightning.attacks.Blended`: the whole pattern in training too.
    """

    crafts: ClassVar[bool] = True

    def __init__(
        self,
        train_alpha: float = 0.15,
        test_alpha: float = 0.2,
        cells: int = 4,
        mask_rate: float = 0.5,
        image: str | None = None,
        pattern_seed: int = 0,
        cover_ratio: float = 0.003,
        poison_ratio: float = 0.003,
        target_label: int = 0,
        label_map: LabelMap = "all_to_one",
        rate_of: RateOf = "total",
    ) -> None:
        check_number("train_alpha", train_alpha, high=1)
        check_number("test_alpha", test_alpha, high=1)
        check_number("mask_rate", mask_rate, high=1)
        check_number("cover_ratio", cover_ratio, high=1)
        super().__init__(
            blend_alpha=test_alpha,
            image=image,
            pattern_seed=pattern_seed,
            poison_ratio=poison_ratio,
            target_label=target_label,
            label_map=label_map,
            rate_of=rate_of,
        )
        check_number("cells", cells, low=1, whole=True)
        if round(mask_rate * cells**2) == cells**2:
            raise ValueError(
                f"Expected `mask_rate` to leave at least one of {cells} x {cells} cells, but got "
                f"{mask_rate}."
            )
        self.train_alpha = train_alpha
        self.cells = cells
        self.mask_rate = mask_rate
        self.cover_ratio = cover_ratio

    def craft(
        self, images: Tensor, labels: Tensor, rows: Tensor, *, cover: bool, seed: int
    ) -> Tensor:
        """Blend the cells drawn for each row into its stored image."""
        masks = self.cell_masks(rows, seed).reshape(-1, 1, self.cells, self.cells)
        height, width = images.shape[-2:]
        # The cell of each pixel: every cell is present, and sizes differ by one pixel at most.
        down = torch.arange(height) * self.cells // height
        right = torch.arange(width) * self.cells // width
        crafted = torch.empty_like(images)
        for start in range(0, len(images), _BATCH_SIZE):
            part = slice(start, start + _BATCH_SIZE)
            pixels = images[part].cpu() / 255
            shown = masks[part][:, :, down][..., right]
            blended = pixels + self.train_alpha * shown * (self.pattern.cpu() - pixels)
            crafted[part] = (blended * 255).round().to(images.device, torch.uint8)
        return crafted

    def cell_masks(self, rows: Tensor, seed: int) -> Tensor:
        """Draw which cells are shown; a row's draw depends only on its number and the seed.

        Args:
            rows: ``(n,)`` row numbers.
            seed: Seed of the run.

        Returns:
            ``(n, cells * cells)``, 1 for a shown cell and 0 for a masked one.
        """
        count = self.cells**2
        masks = torch.ones(len(rows), count)
        for mask, row in zip(masks, rows.tolist(), strict=True):
            generator = torch.Generator().manual_seed(derived_seed(seed, "adaptive_blend", row))
            mask[torch.randperm(count, generator=generator)[: round(self.mask_rate * count)]] = 0
        return masks

    def poison(self, images: Tensor) -> Tensor:
        """Return the images: poisoned and cover rows are stored with their cells."""
        return images
