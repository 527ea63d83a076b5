"""Fine-tuning with sharpness-aware minimization (FT-SAM): tune towards flat minima.

Example:
    ``python purify.py attack=blended defense=ft_sam``
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.defenses.common.defense import Defense
from fst_lightning.defenses.common.whole_set import batchnorms
from fst_lightning.validate import check_number


class FineTuningSAM(Defense):
    r"""Tune with the gradient at the worst weights nearby.

    *How it works.* The weights of neurons that a backdoor uses tend to be large, and plain
    fine-tuning hardly changes them. This defense first moves the weights to where the loss is worst
    within a small radius, and large weights move further than small ones. It computes the gradient
    there, moves back, and applies this gradient. The network ends in a flat minimum, in which the
    neurons of the backdoor have shrunk.

    .. math:: \theta \leftarrow \theta - \eta \nabla L(\theta + \hat\epsilon), \qquad
        \hat\epsilon = \rho \frac{T^2 \nabla L(\theta)}{\|T \nabla L(\theta)\|_2}, \qquad
        T = \mathrm{diag}(|\theta|)

    with the trained weights :math:`\theta`, the learning rate :math:`\eta`, the loss :math:`L` on
    clean images, the radius :math:`\rho` and the scaling :math:`T`, so that
    :math:`\|T^{-1} \hat\epsilon\|_2 = \rho`.

    Args:
        rho: Radius :math:`\rho`, 0 or more; 0 is plain fine-tuning. The paper uses 2 for CIFAR-10
            and 8 for GTSRB and Tiny-ImageNet.
        adaptive: Whether large weights move further. If False, :math:`T` is the identity, as in
            plain sharpness-aware minimization, which needs a far smaller radius.
        label_smoothing: Label smoothing of the cross-entropy, 0 to 1. The public code uses 0.1 for
            CIFAR-10 and 0 otherwise.

    Shape:
        - images: ``(N, C, H, W)`` float, normalized.
        - labels: ``(N,)`` int64.

    Raises:
        ValueError: If an argument is out of its range.

    Needs:
        Clean images with true labels.

    Cost:
        Two forward and backward passes per step, twice as much as fine-tuning.

    When it fails:
        With few epochs it leaves most of a backdoor at a low poison ratio. ``rho`` has to fit the
        network: a small one is plain fine-tuning, a large one costs clean accuracy.

    Note:
        BatchNorm's running statistics follow the first one only, at the weights themselves. The
        public code steps its cosine schedule once per iteration; here the schedule is that of
        ``tuning``.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        >>> defense, before = FineTuningSAM(), net[1].weight.detach().clone()
        >>> defense.loss(net, torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 0, 1])).backward()
        >>> torch.equal(net[1].weight, before)
        False
        >>> defense.after_backward()
        >>> torch.equal(net[1].weight, before)
        True

    References:
        Zhu, Wei, Shen, Fan and Wu, "Enhancing fine-tuning based backdoor defense with
        sharpness-aware minimization", ICCV 2023, arXiv 2304.11823.

    See Also:
        - :class:`~fst_lightning.defenses.FisherPurification`: flat minima by a penalty.
        - :class:`~fst_lightning.defenses.PathAwareMinimization`: moves towards the backdoored
          weights instead.
        - :class:`~fst_lightning.defenses.FineTuning`: without the move.
    """

    def __init__(
        self, rho: float = 2.0, adaptive: bool = True, label_smoothing: float = 0.1
    ) -> None:
        super().__init__()
        check_number("rho", rho)
        check_number("label_smoothing", label_smoothing, high=1)
        self.rho = rho
        self.adaptive = adaptive
        self.label_smoothing = label_smoothing
        self._kept: list[tuple[nn.Parameter, Tensor]] = []
        self._rise: Tensor | None = None

    def prepare(self, net: nn.Module, generator: torch.Generator) -> None:
        """Put back weights that an earlier run left moved."""
        self.finish()
        self._rise = None

    def loss(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """The loss at the worst weights nearby; the weights stay there until the backward pass."""
        self.after_backward()
        near = self._cross_entropy(net, images, labels)
        parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(near, parameters, allow_unused=True)
        self._climb(parameters, gradients)
        with unchanged_batchnorm(net):
            worst = self._cross_entropy(net, images, labels)
        self._rise = (worst - near).detach()
        return worst

    def _cross_entropy(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(net(images), labels, label_smoothing=self.label_smoothing)

    @torch.no_grad()
    def _climb(self, parameters: list[nn.Parameter], gradients: tuple[Tensor | None, ...]) -> None:
        steep = [(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None]
        scaled = [p.abs() * g if self.adaptive else g for p, g in steep]
        norms = [values.float().norm() for values in scaled]
        norm = torch.stack(norms).norm() if norms else torch.zeros(())
        # A gradient of zero gives no direction: do not move.
        factor = torch.where(norm > 0, self.rho / norm, torch.zeros_like(norm))
        for (parameter, _), values in zip(steep, scaled, strict=True):
            # Adding and subtracting rounds: only a copy restores the same bits.
            self._kept.append((parameter, parameter.detach().clone()))
            size = parameter.abs() if self.adaptive else 1
            parameter.add_(size * values * factor.to(values.dtype))

    @torch.no_grad()
    def after_backward(self) -> None:
        """Restore the weights, bit for bit."""
        for parameter, kept in self._kept:
            parameter.copy_(kept)
        self._kept = []

    def finish(self) -> None:
        """Restore the weights if an exception left them moved."""
        self.after_backward()

    def statistics(self) -> dict[str, Tensor]:
        r"""The rise :math:`L(\theta + \hat\epsilon) - L(\theta)` on the last batch."""
        return {} if self._rise is None else {"sharpness": self._rise}


@contextmanager
def unchanged_batchnorm(net: nn.Module) -> Iterator[None]:
    """Let BatchNorm layers normalize by the batch without updating their statistics."""
    tracking = [norm for norm in batchnorms(net).values() if norm.training]
    tracking = [norm for norm in tracking if norm.track_running_stats]
    try:
        for norm in tracking:
            norm.track_running_stats = False
        yield
    finally:
        for norm in tracking:
            norm.track_running_stats = True
