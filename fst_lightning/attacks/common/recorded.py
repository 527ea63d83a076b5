"""A trigger that is known from triggered images alone."""

from __future__ import annotations

from torch import Tensor

from fst_lightning.attacks.common.attack import Attack


class RecordedTrigger(Attack):
    """Stands for the attack where triggered test images are given: they carry the trigger already.

    Args:
        target_label: what the attacker wants the images to be taken for.

    Example:
        >>> import torch
        >>> images = torch.rand(2, 3, 8, 8)
        >>> torch.equal(RecordedTrigger(target_label=1).trigger(images), images)
        True
    """

    def __init__(self, target_label: int = 0) -> None:
        super().__init__(poison_ratio=0.0, target_label=target_label)

    def trigger(self, images: Tensor) -> Tensor:
        """Return the images as they are."""
        return images
