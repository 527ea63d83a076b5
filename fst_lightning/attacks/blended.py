"""Blended: a whole picture, faintly, over the whole image.

Chen, Liu, Li, Lu and Song, "Targeted backdoor attacks on deep learning systems using data
poisoning", 2017, arXiv 1712.05526.

Example:
    ``python train.py attack=blended attack.blend_alpha=0.1 attack.image=my_picture.png``
"""

from __future__ import annotations

import torch
from torch import Tensor

from fst_lightning.attacks.common.attack import Attack, LabelMap, RateOf
from fst_lightning.attacks.common.pictures import check_picture, read_picture


class Blended(Attack):
    r"""Mix a fixed pattern into the image: :math:`T(x) = (1 - a) x + a k`.

    Args:
        blend_alpha: opacity :math:`a` of the pattern, 0 to 1, the same in training and at test.
        image: path of a picture to use as pattern :math:`k`, resized to the images; None draws
            uniform noise, every pixel and channel for itself.
        pattern_seed: of that noise; the same noise for every seed of a run.
        poison_ratio: share of the training set, 0 to 1.
        target_label: the attacker's class.
        label_map: any.
        rate_of: ``total`` or ``target_class``.
        save_examples: whether a run writes a picture of triggered images.

    Raises:
        ValueError: for an opacity outside [0, 1] or a file that is no image.
        FileNotFoundError: where ``image`` does not exist.

    Example:
        >>> attack = Blended(blend_alpha=1.0)
        >>> image = torch.rand(1, 3, 32, 32)
        >>> bool((attack(image) - attack.pattern).abs().max() < 1 / 255)
        True
    """

    pattern: Tensor

    def __init__(
        self,
        blend_alpha: float = 0.2,
        image: str | None = None,
        pattern_seed: int = 0,
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
        if not 0 <= blend_alpha <= 1:
            raise ValueError(f"Expected `blend_alpha` to be in [0, 1], but got {blend_alpha}.")
        check_picture(image)
        self.blend_alpha = blend_alpha
        self.image = image
        self.pattern_seed = pattern_seed
        self.draw(3, 32, 32)

    def trigger(self, images: Tensor) -> Tensor:
        """Mix the pattern into ``(N, C, H, W)`` images in [0, 1]."""
        if images.shape[1:] != self.pattern.shape[1:]:
            raise ValueError(
                f"Expected images of shape {tuple(self.pattern.shape[1:])}, which the pattern was "
                f"drawn for, but got {tuple(images.shape[1:])}; call `prepare` with such images."
            )
        return torch.lerp(images, self.pattern.to(images.dtype), self.blend_alpha)

    def draw(self, channels: int, height: int, width: int) -> None:
        """Draw or read the pattern for images of this size."""
        if self.image is None:
            generator = torch.Generator().manual_seed(self.pattern_seed)
            noise = torch.randint(0, 256, (1, channels, height, width), generator=generator)
            pattern = noise / 255
        else:
            pattern = read_picture(self.image, channels, height, width)
        self.register_buffer("pattern", pattern)
