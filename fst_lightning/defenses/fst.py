"""Feature shift tuning (FST): make the features move away from the backdoored head.

Min, Qin, Shen and Cheng, "Towards stable backdoor purification through feature shift tuning",
NeurIPS 2023, arXiv 2310.01875.

Example:
    ``python purify.py attack=blended defense=fst defense.alpha=0.1``
"""

from __future__ import annotations

from torch import Tensor, nn

from fst_lightning.defenses.common.channel_masks import check_number
from fst_lightning.defenses.common.head_defense import HeadDefense, Reinit
from fst_lightning.models import find_head


class FST(HeadDefense):
    r"""Re-initialise the head and penalise its inner product with the head that came in.

    .. math:: \min_{\theta, W, b} \mathrm{CE}(f(x), y) + \alpha \langle W, W_0 \rangle
        \quad \text{s.t.} \quad \|W\|_F = \|W_0\|_F

    Steps: keep the head's weight :math:`W_0` as it came in; re-initialise the head; per step add
    the penalty to the loss; after every step of the optimizer project :math:`W` to the norm of
    :math:`W_0`. Without the projection the penalty has no lower bound. The bias takes no part, and
    may be absent. ``reinit="uniform"`` with the projection is the published algorithm.

    Args:
        alpha: weight of the penalty, 0 or more. On the sphere the penalty is
            :math:`\alpha \|W_0\|^2 \cos(W, W_0)`: its strength grows with the norm of the head, so
            that data sets with many classes want a small alpha (the paper: 0.2 for CIFAR-10, 0.1
            for GTSRB, 0.001 for CIFAR-100 and Tiny-ImageNet).
        reinit: ``orthogonal``, ``uniform`` or ``none``.
        project_norm: project after every step.
        head: dotted name of the linear head; None finds it.

    Raises:
        ValueError: If alpha is negative or the re-initialisation is unknown.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> defense = FST(alpha=0.2)
        >>> defense.prepare(net, torch.Generator().manual_seed(0))
        >>> abs(float(defense.penalty())) < 1e-6  # the new head is orthogonal to the old one
        True
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
        """Always."""
        return True

    def alpha_range(self, net: nn.Module) -> tuple[float, float]:
        r"""From :math:`\alpha \|W_0\|^2 = 0.01` to 100, in units of the cross-entropy.

        On the sphere the penalty is :math:`\alpha \|W_0\|^2 \cos(W, W_0)`, so that this product,
        and not alpha, means the same on networks whose heads differ in norm.
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
        r""":math:`\alpha \sum_{ij} W_{ij} W_{0,ij}`, a scalar; None where alpha is 0."""
        if self.alpha == 0:
            return None
        return self.alpha * (self.linear.weight.float() * self.original_weight).sum()
