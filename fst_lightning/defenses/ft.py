"""Fine-tuning (FT): train the whole network a little longer on clean images.

Example:
    ``python purify.py attack=blended defense=ft tuning.max_epochs=20``
"""

from __future__ import annotations

from typing import ClassVar

from fst_lightning.defenses.common.head_defense import HeadDefense


class FineTuning(HeadDefense):
    r"""Tune all parameters on clean images, starting from the backdoored weights.

    *How it works.* The network is trained for a few epochs on the defender's clean images, which
    carry no trigger. The hope is that the network forgets a shortcut that it no longer needs. This
    is the baseline of all tuning defenses. It often fails if few training images were poisoned,
    because the clean images then give no reason to change the features that respond to the trigger.

    .. math:: \min_\theta \mathrm{CE}(f_\theta(x), y)

    with the network :math:`f`, all its parameters :math:`\theta` and clean images :math:`x` with
    labels :math:`y`.

    Args:
        project_norm: Whether to keep the norm of the head's weight.
        head: Dotted name of the linear head; None finds it.

    Shape:
        - images: ``(N, C, H, W)`` float, normalized.
        - labels: ``(N,)`` int64.

    Raises:
        ValueError: If the head is needed and not found.

    Needs:
        Clean images with true labels.

    Cost:
        One forward and backward pass per step. It is the unit in which other defenses are counted.

    When it fails:
        At a low poison ratio it leaves most backdoors as they are, because the clean loss is
        already small. More epochs or a higher learning rate remove more and cost clean accuracy.

    Note:
        The public script of the FST paper keeps the norm of the head in each of its modes, while
        the paper does so for FST only; the default here follows the paper.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> defense = FineTuning()
        >>> defense.prepare(net, torch.Generator())
        >>> all(parameter.requires_grad for parameter in net.parameters())
        True

    References:
        Min, Qin, Shen and Cheng, "Towards stable backdoor purification through feature shift
        tuning", NeurIPS 2023, arXiv 2310.01875 (baseline).

    See Also:
        - :class:`~fst_lightning.defenses.FST`: fine-tuning that moves the features.
        - :class:`~fst_lightning.defenses.FineTuningSAM`: fine-tuning towards flat minima.
        - :class:`~fst_lightning.defenses.LinearProbing`: tunes the head only.
    """

    needs_features: ClassVar[bool] = False

    def __init__(self, project_norm: bool = False, head: str | None = None) -> None:
        super().__init__(reinit="none", project_norm=project_norm, head=head)
