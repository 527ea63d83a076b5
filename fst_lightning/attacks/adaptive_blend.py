"""Adaptive-Blend: half of a faint picture in training, all of it at test, and cover images.

Qi, Xie, Li, Mahloujifar and Mittal, "Revisiting the assumption of latent separability for backdoor
defenses", ICLR 2023.

Example:
    ``python train.py attack=adaptive_blend attack.poison_ratio=0.01 attack.cover_ratio=0.01``
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fst_lightning.attacks.blended import Blended
from fst_lightning.attacks.common.attack import LabelMap, RateOf, check_ratio
from fst_lightning.seeds import derived_seed

_BATCH_SIZE = 1024


class AdaptiveBlend(Blended):
    r"""Blend cells of a pattern in training, the whole at test: :math:`x + a\, m \odot (k - x)`.

    The image is divided into :math:`n \times n` cells. In training :math:`m` masks a share of them,
    drawn for every poisoned and every cover row by itself, and :math:`a = a_{train}`; at test
    :math:`m = 1` and :math:`a = a_{test}`. Cover rows keep their true labels: they teach the
    network to tell a whole trigger from a part of it, so that its features of poisoned images do
    not stand apart.

    Args:
        train_alpha: opacity :math:`a_{train}`, 0 to 1.
        test_alpha: opacity :math:`a_{test}`, 0 to 1.
        cells: :math:`n`, cells along each side of the image, 1 or more.
        mask_rate: share of the cells that is left out in training, 0 to 1, at least one cell stays.
        image: path of a picture to use as pattern :math:`k`, resized to the images; None draws
            uniform noise.
        pattern_seed: of that noise; the same noise for every seed of a run.
        cover_ratio: share of the training set that is cover, 0 to 1.
        poison_ratio: share of the training set, 0 to 1.
        target_label: the attacker's class.
        label_map: any.
        rate_of: ``total`` or ``target_class``.
        save_examples: whether a run writes a picture of triggered images.

    Raises:
        ValueError: for an opacity or a ratio outside [0, 1], no cell at all, or a file that is no
            image.
        FileNotFoundError: where ``image`` does not exist.

    Example:
        >>> attack = AdaptiveBlend()
        >>> rows = torch.arange(3)
        >>> attack.cell_masks(rows, seed=0).sum(dim=1).tolist()  # of 16 cells
        [8.0, 8.0, 8.0]
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
        save_examples: bool = True,
    ) -> None:
        check_ratio("train_alpha", train_alpha)
        check_ratio("test_alpha", test_alpha)
        check_ratio("mask_rate", mask_rate)
        check_ratio("cover_ratio", cover_ratio)
        super().__init__(
            blend_alpha=test_alpha,
            image=image,
            pattern_seed=pattern_seed,
            poison_ratio=poison_ratio,
            target_label=target_label,
            label_map=label_map,
            rate_of=rate_of,
            save_examples=save_examples,
        )
        if cells < 1 or round(mask_rate * cells**2) == cells**2:
            raise ValueError(
                "Expected `cells` to be 1 or more and `mask_rate` to leave one of them, "
                f"but got {cells} and {mask_rate}."
            )
        self.train_alpha = train_alpha
        self.cells = cells
        self.mask_rate = mask_rate
        self.cover_ratio = cover_ratio

    def craft(
        self, images: Tensor, labels: Tensor, rows: Tensor, *, cover: bool, seed: int
    ) -> Tensor:
        """Blend the cells of every row's own draw into its stored image."""
        masks = self.cell_masks(rows, seed).reshape(-1, 1, self.cells, self.cells)
        height, width = images.shape[-2:]
        # The cell that a pixel is in: all cells are there and within a pixel of the same size.
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
        """Draw which cells are shown: a row's draw depends on its number and the seed alone.

        Args:
            rows: ``(n,)`` row numbers.
            seed: of the run.

        Returns:
            ``(n, cells * cells)``, 1 where the pattern is shown and 0 where it is masked.
        """
        count = self.cells**2
        masks = torch.ones(len(rows), count)
        for mask, row in zip(masks, rows.tolist(), strict=True):
            generator = torch.Generator().manual_seed(derived_seed(seed, "adaptive_blend", row))
            mask[torch.randperm(count, generator=generator)[: round(self.mask_rate * count)]] = 0
        return masks

    def poison(self, images: Tensor) -> Tensor:
        """Leave crafted images, of poisoned and of cover rows, as they are."""
        return images
