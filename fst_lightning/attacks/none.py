"""No attack: a clean model, or a model whose attack nobody knows."""

from __future__ import annotations

from torch import Tensor

from fst_lightning.attacks.common.attack import Attack
from fst_lightning.attacks.common.plan import PoisonPlan


class NoAttack(Attack):
    """Change nothing; there is no trigger, and so no attack success rate.

    Args:
        target_label: the attacker's class, where triggered test images are given all the same
            (``data.triggered_root``).

    Example:
        >>> import torch
        >>> NoAttack().plan(torch.zeros(4, dtype=torch.int64), num_classes=2, seed=0).num_poisoned
        0
    """

    has_trigger = False

    def __init__(self, target_label: int = 0) -> None:
        super().__init__(poison_ratio=0.0, target_label=target_label)

    def trigger(self, images: Tensor) -> Tensor:
        """Return the images as they are."""
        return images

    def counts_for_asr(self, labels: Tensor) -> Tensor:
        """No row: without a trigger there is nothing to succeed."""
        return labels < 0

    def plan(self, labels: Tensor, num_classes: int, seed: int) -> PoisonPlan:
        """Poison nothing."""
        return PoisonPlan.nothing(len(labels))
