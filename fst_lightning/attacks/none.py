"""No attack: a clean network, or a network whose attack is unknown.

Example:
    ``python train.py attack=none``
"""

from __future__ import annotations

from torch import Tensor

from fst_lightning.attacks.common.attack import Attack
from fst_lightning.attacks.common.plan import PoisonPlan


class NoAttack(Attack):
    """Leave the training set as it is.

    *How it works.* No row is poisoned, so that training gives a clean network. The same option
    serves a network from elsewhere whose trigger is unknown. Its clean accuracy can be measured;
    its attack success rate cannot, unless ``data.triggered_root`` names triggered test images.

    .. math:: T(x) = x

    for each image :math:`x`.

    Args:
        target_label: The attacker's class, 0 to C - 1; used only with triggered test images
            (``data.triggered_root``).

    Shape:
        - images: ``(N, C, H, W)`` float in [0, 1].
        - :meth:`trigger`: the same shape, in [0, 1].

    Raises:
        ValueError: If ``target_label`` is not a whole number of 0 or more.

    Needs:
        Nothing.

    Cost:
        Nothing.

    When it fails:
        A run without an attack has no attack success rate, and a network with an unknown attack may
        still hold a backdoor.

    Note:
        Results of such a run have no attack success rate, no robust accuracy and no defense
        effectiveness rating.

    Example:
        >>> import torch
        >>> NoAttack().plan(torch.zeros(4, dtype=torch.int64), num_classes=2, seed=0).num_poisoned
        0

    References:
        There is no paper: this is the baseline of all attacks.

    See Also:
        - :class:`~fst_lightning.attacks.Attack`: the interface of all attacks.
    """

    has_trigger = False

    def __init__(self, target_label: int = 0) -> None:
        super().__init__(poison_ratio=0.0, target_label=target_label)

    def trigger(self, images: Tensor) -> Tensor:
        """Return the images as they are."""
        return images

    def counts_for_asr(self, labels: Tensor) -> Tensor:
        """No row counts, because there is no trigger."""
        return labels < 0

    def plan(self, labels: Tensor, num_classes: int, seed: int) -> PoisonPlan:
        """Poison nothing."""
        return PoisonPlan.nothing(len(labels))
