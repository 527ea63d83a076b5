"""Fine-tuning with a new head (FT-init): FST without penalty and projection.

Example:
    ``python purify.py attack=blended defense=ft_init``
"""

from __future__ import annotations

from fst_lightning.defenses.common.head_defense import HeadDefense, Reinit


class FineTuningInit(HeadDefense):
    r"""Replace the head by a random one, and tune all parameters on clean images.

    *How it works.* The head of a backdoored network maps the features of the trigger to the target
    class. This defense discards it and starts with a random head. All layers are then trained for a
    few epochs on clean images, which have no trigger for the new head to learn. Nothing prevents
    the head from returning to the old one, which is what FST adds.

    .. math:: \min_\theta \mathrm{CE}(f_\theta(x), y), \qquad
        W, b \sim U(-1/\sqrt d, 1/\sqrt d) \;\text{at the start}

    with the network :math:`f`, all its parameters :math:`\theta`, its head with weight :math:`W`,
    bias :math:`b` and :math:`d` inputs, and clean images :math:`x` with labels :math:`y`.

    Args:
        reinit: The new head: ``uniform`` as in the paper, ``orthogonal`` to the old one, or
            ``none``.
        project_norm: Whether to keep the norm of the head's weight, as the public script does.
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
        The new head may return to the old one, because the features did not move. Its result varies
        from network to network: it removes a backdoor from one and leaves it in the next.

    Note:
        With ``uniform`` and without projection, the norm of the new head differs from that of the
        old one.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> before = net[3].weight.detach().clone()
        >>> defense = FineTuningInit()
        >>> defense.prepare(net, torch.Generator().manual_seed(0))
        >>> torch.equal(net[3].weight, before)
        False

    References:
        Min, Qin, Shen and Cheng, "Towards stable backdoor purification through feature shift
        tuning", NeurIPS 2023, arXiv 2310.01875 (FT-init).

    See Also:
        - :class:`~fst_lightning.defenses.FST`: adds a penalty and a projection.
        - :class:`~fst_lightning.defenses.FeatureExtractorTuning`: keeps the new head frozen.
    """

    def __init__(
        self, reinit: Reinit = "uniform", project_norm: bool = False, head: str | None = None
    ) -> None:
        super().__init__(reinit=reinit, project_norm=project_norm, head=head)
