"""Feature-extractor tuning (FE-tuning): a frozen random head, and features that follow.

Example:
    ``python purify.py attack=blended defense=fe_tuning``
"""

from __future__ import annotations

from fst_lightning.defenses.common.head_defense import HeadDefense, Reinit


class FeatureExtractorTuning(HeadDefense):
    r"""Replace the head by a frozen random one, and tune all other layers on clean images.

    *How it works.* The head of a backdoored network maps the features of the trigger to the target
    class. This defense replaces it by a random head and freezes that head. To classify clean images
    again, the other layers have to move their features to where the new head expects them, away
    from the old ones. It removes backdoors well, but a random head is a poor classifier and costs
    clean accuracy.

    .. math:: \min_{\phi} \mathrm{CE}(W \phi(x) + b, y), \qquad
        W, b \sim U(-1/\sqrt d, 1/\sqrt d) \;\text{fixed}

    with the features :math:`\phi` of dimension :math:`d`, weight :math:`W` and bias :math:`b` of
    the head, and clean images :math:`x` with labels :math:`y`.

    Args:
        reinit: The new head: ``uniform`` as in the paper, ``orthogonal`` to the old one, or
            ``none``.
        head: Dotted name of the linear head; None finds it.

    Shape:
        - images: ``(N, C, H, W)`` float, normalized.
        - labels: ``(N,)`` int64.

    Raises:
        ValueError: If ``reinit`` is unknown, or no linear head is found.

    Needs:
        Clean images with true labels, and a linear head behind layers that can train.

    Cost:
        One forward and backward pass per step, like fine-tuning.

    When it fails:
        The random head is a poor classifier and cannot adapt, so that clean accuracy suffers. With
        many classes or few images, the features cannot follow.

    Note:
        The norm of the head is not projected, because the head does not change.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> defense = FeatureExtractorTuning()
        >>> defense.prepare(net, torch.Generator().manual_seed(0))
        >>> [name for name, parameter in net.named_parameters() if parameter.requires_grad]
        ['1.weight', '1.bias']

    References:
        Min, Qin, Shen and Cheng, "Towards stable backdoor purification through feature shift
        tuning", NeurIPS 2023, arXiv 2310.01875 (FE-tuning).

    See Also:
        - :class:`~fst_lightning.defenses.FST`: trains the new head too.
        - :class:`~fst_lightning.defenses.LinearProbing`: the opposite: tunes the head only.
    """

    def __init__(self, reinit: Reinit = "uniform", head: str | None = None) -> None:
        super().__init__(reinit=reinit, project_norm=False, train_head=False, head=head)
