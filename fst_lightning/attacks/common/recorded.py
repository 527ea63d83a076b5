"""A trigger that is known only from triggered images."""

from __future__ import annotations

from torch import Tensor

from fst_lightning.attacks.common.attack import Attack


class RecordedTrigger(Attack):
    """Stands for the attack if triggered test images are given, which already carry the trigger.

    Args:
        target_label: The attacker's class, 0 or more.

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
