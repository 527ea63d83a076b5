"""Feature shift tuning (FST): move the features away from the backdoored head.

Example:
    ``python purify.py attack=blended defense=fst defense.alpha=0.1``
"""

from __future__ import annotations

from torch import Tensor, nn

from fst_lightning.defenses.common.head_defense import HeadDefense, Reinit
from fst_lightning.models import find_head
from fst_lightning.validate import check_number


class FST(HeadDefense):
    r"""Replace the head, and penalize its inner product with the original one.

    *How it works.* Fine-tuning often fails because the features of triggered images stay where the
    head expects them. This defense replaces the head by a new one and adds a penalty that grows as
    the new head turns towards the old one. The network can then classify clean images only if its
    features shift to the new head, and features of the trigger lose their meaning. The norm of the
    head is held fixed, because the penalty would otherwise have no lower bound.

    .. math:: \min_{\theta, W, b} \mathrm{CE}(f(x), y) + \alpha \langle W, W_0 \rangle
        \quad \text{s.t.} \quad \|W\|_F = \|W_0\|_F

    with the network :math:`f`, its features' parameters :math:`\theta`, weight :math:`W` and bias
    :math:`b` of the head, and the original weight :math:`W_0`, taken before the replacement. After
    each step of the optimizer, :math:`W` is scaled to the norm of :math:`W_0`. The bias takes no
    part in the penalty, and may be absent.

    Args:
        alpha: Weight :math:`\alpha` of the penalty, 0 or more. The paper uses 0.2 for CIFAR-10, 0.1
            for GTSRB, and 0.001 for CIFAR-100 and Tiny-ImageNet.
        reinit: The new head: ``orthogonal`` to the old one, ``uniform`` as published, or ``none``
            to keep it.
        project_norm: Whether to scale the head to its original norm after each step.
        head: Dotted name of the linear head; None finds it.

    Shape:
        - images: ``(N, C, H, W)`` float, normalized.
        - labels: ``(N,)`` int64.

    Raises:
        ValueError: If alpha is negative, ``reinit`` is unknown, or the head is not found, has a
            norm of zero or is not finite.

    Needs:
        Clean images with true labels, and a linear head behind layers that can train. Neither a
        trigger nor a suspected class.

    Cost:
        One forward and backward pass per step, like fine-tuning. Penalty and scaling touch the head
        only.

    When it fails:
        Triggers that are mixed with the features of the clean task, such as those of SSBA or
        Adaptive-Blend, may survive. With the paper's alpha it costs more clean accuracy than
        defenses that find the trigger. The backdoor may be hidden and not forgotten: a few poisoned
        images bring it back (``docs/hidden.md``).

    Note:
        ``reinit="uniform"`` with ``project_norm=True`` is the published algorithm. The default
        starts from a head that is already orthogonal to the old one, at the same norm. The strength
        depends on the head: the penalty equals :math:`\alpha \|W_0\|^2 \cos(W, W_0)`, so that data
        sets with many classes need a small alpha.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> defense = FST(alpha=0.2)
        >>> defense.prepare(net, torch.Generator().manual_seed(0))
        >>> abs(float(defense.penalty())) < 1e-6  # the new head is orthogonal to the old one
        True

    References:
        Min, Qin, Shen and Cheng, "Towards stable backdoor purification through feature shift
        tuning", NeurIPS 2023, arXiv 2310.01875 (the objective of FST).

    See Also:
        - :class:`~fst_lightning.FSTCallback`: the same defense in your own Lightning training.
        - :class:`~fst_lightning.defenses.FineTuningInit`: without penalty and projection.
        - :class:`~fst_lightning.defenses.FeatureExtractorTuning`: a new head that is frozen.
    """

    def __init__(
        self,
        alpha: float = 0.2,
        reinit: Reinit = "orthogonal",
        project_norm: bool = True,
        head: str | None = None,
    ) -> None:
        super().__init__(reinit=reinit, project_norm=project_norm, head=head)
        check_number("alpha", alpha)
        self.alpha = alpha

    @property
    def needs_head(self) -> bool:
        """True: the penalty is on the head."""
        return True

    def alpha_range(self, net: nn.Module) -> tuple[float, float]:
        r"""From :math:`\alpha \|W_0\|^2 = 0.01` to 100, in units of the cross-entropy.

        With a projected norm, the penalty is :math:`\alpha \|W_0\|^2 \cos(W, W_0)`. This product,
        unlike alpha, has the same meaning for networks whose heads differ in norm.
        """
        _, linear = find_head(net, self.head)
        square = float(linear.weight.detach().float().square().sum())
        if square == 0:
            raise ValueError(
                "Expected a head with a norm for alpha=auto, but its weight is all zeros; is this "
                "a trained network?"
            )
        return 0.01 / square, 100 / square

    def penalty(self) -> Tensor | None:
        r""":math:`\alpha \sum_{ij} W_{ij} W_{0,ij}`, a scalar; None if alpha is 0."""
        if self.alpha == 0:
            return None
        return self.alpha * (self.linear.weight.float() * self.original_weight).sum()
