"""Linear probing (LP): train only the head.

Example:
    ``python purify.py attack=blended defense=lp``
"""

from __future__ import annotations

from fst_lightning.defenses.common.head_defense import HeadDefense


class LinearProbing(HeadDefense):
    r"""Tune the head on clean images, and keep the features.

    *How it works.* All layers but the last are frozen, and the last is trained for a few epochs on
    clean images. The features stay those of the backdoored network. The defense can therefore only
    change which features the head uses, and it shows how much of a backdoor the head alone can
    undo.

    .. math:: \min_{W, b} \mathrm{CE}(W \phi(x) + b, y)

    with the frozen features :math:`\phi`, weight :math:`W` and bias :math:`b` of the head, and
    clean images :math:`x` with labels :math:`y`.

    Args:
        project_norm: Whether to keep the norm of the head's weight, as the public script does.
        head: Dotted name of the linear head; None finds it.

    Shape:
        - images: ``(N, C, H, W)`` float, normalized.
        - labels: ``(N,)`` int64.

    Raises:
        ValueError: If no linear head is found.

    Needs:
        Clean images with true labels, and a linear head.

    Cost:
        One forward pass per step, and a backward pass through the head only.

    When it fails:
        It leaves almost every backdoor, because clean images say nothing about the direction of the
        trigger in feature space.

    Note:
        BatchNorm stays in evaluation mode. In the public script of the FST paper its running
        statistics still change, which tunes the features too.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> defense = LinearProbing()
        >>> defense.prepare(net, torch.Generator())
        >>> [name for name, parameter in net.named_parameters() if parameter.requires_grad]
        ['3.weight', '3.bias']

    References:
        Min, Qin, Shen and Cheng, "Towards stable backdoor purification through feature shift
        tuning", NeurIPS 2023, arXiv 2310.01875 (baseline).

    See Also:
        - :class:`~fst_lightning.defenses.FeatureExtractorTuning`: the opposite: tunes all but the
          head.
        - :class:`~fst_lightning.defenses.NaturalGradientTuning`: tunes the head by natural
          gradients.
    """

    def __init__(self, project_norm: bool = False, head: str | None = None) -> None:
        super().__init__(reinit="none", project_norm=project_norm, train_features=False, head=head)
