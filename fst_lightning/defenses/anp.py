"""Adversarial neuron pruning (ANP): prune channels that collapse when perturbed.

Example:
    ``python purify.py attack=blended defense=anp defense.epsilon=0.4``
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.defenses.common.channel_masks import (
    ChannelMask,
    MaskDefense,
    attach,
    detach,
)
from fst_lightning.defenses.common.clean_data import CleanData
from fst_lightning.defenses.common.known_gradient import gradients, with_gradients
from fst_lightning.validate import check_number


class PerturbedMask(ChannelMask):
    r"""BatchNorm's scale with a mask and a perturbation: :math:`(m + \delta) \odot \gamma`."""

    delta: Tensor | None = None
    r""":math:`\delta`, ``(C,)``; None for zero."""

    def forward(self, scale: Tensor) -> Tensor:
        """Scale each channel."""
        factor = self.mask if self.delta is None else self.mask + self.delta
        return factor * scale


class PerturbedShift(nn.Module):
    r"""BatchNorm's shift with a perturbation: :math:`(1 + \xi) \odot \beta`."""

    delta: Tensor | None = None
    r""":math:`\xi`, ``(C,)``; None for zero."""

    def forward(self, shift: Tensor) -> Tensor:
        """Scale each shift."""
        return shift if self.delta is None else (1 + self.delta) * shift


class AdversarialNeuronPruning(MaskDefense):
    r"""Learn channel masks that withstand adversarial perturbations, and prune the smallest ones.

    *How it works.* If all channels of a backdoored network are perturbed in the worst way, it
    answers with the target class even without a trigger, because the channels of the backdoor are
    easily excited. The defense learns a mask for each channel so that the network stays accurate
    both with and without such a perturbation. The masks of sensitive channels shrink. After the
    last step, the channels with the smallest masks are pruned, as many as held-out clean accuracy
    allows.

    .. math:: \min_{m \in [0, 1]} \alpha\,\ell(m \odot \gamma, \beta) + (1 - \alpha)
        \max_{\|\delta\|_\infty, \|\xi\|_\infty \le \epsilon}
        \ell((m + \delta) \odot \gamma, (1 + \xi) \odot \beta)

    with the cross-entropy :math:`\ell`, the masks :math:`m`, scales :math:`\gamma` and shifts
    :math:`\beta` of BatchNorm, their perturbations :math:`\delta` and :math:`\xi`, the bound
    :math:`\epsilon` and the weight :math:`\alpha`. Signed steps of :math:`\epsilon / K` from zero
    approach the inner maximum.

    Args:
        epsilon: Relative bound :math:`\epsilon` of the perturbation, 0 or more.
        alpha: Weight :math:`\alpha` of the unperturbed loss, 0 to 1.
        inner_steps: Number :math:`K` of inner steps, 1 or more.
        max_pruning_ca_drop: Held-out clean accuracy that pruning may cost, 0 to 1.

    Shape:
        - images: ``(N, C, H, W)`` float, normalized.
        - labels: ``(N,)`` int64.

    Raises:
        ValueError: If an argument is out of its range, or the network has no BatchNorm layer.

    Needs:
        Clean images with true labels, and BatchNorm layers with a scale.

    Cost:
        Each step takes ``inner_steps`` passes for the perturbation and two for the masks, forward
        and backward. At the end, held-out images are classified once per candidate threshold.

    When it fails:
        If the backdoor is spread over many channels that also serve the clean task, pruning enough
        of them costs more than ``max_pruning_ca_drop`` allows.

    Note:
        The public scripts choose the pruning threshold on the test set; here a held-out fifth of
        the clean images decides. BatchNorm normalizes by the batch while the masks are learned.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
        >>> defense = AdversarialNeuronPruning()
        >>> defense.prepare(net, torch.Generator())
        >>> [name for name, parameter in net.named_parameters() if parameter.requires_grad]
        ['1.parametrizations.weight.0.mask']

    References:
        Wu and Wang, "Adversarial neuron pruning purifies backdoored deep models", NeurIPS 2021,
        arXiv 2110.14430.

    See Also:
        - :class:`~fst_lightning.defenses.ReconstructiveNeuronPruning`: masks that undo unlearning.
        - :class:`~fst_lightning.defenses.NeuralMaskFineTuning`: masks without pruning.
    """

    searches_in_bfloat16: ClassVar[bool] = True
    held_out: ClassVar[float] = 0.2

    def __init__(
        self,
        epsilon: float = 0.4,
        alpha: float = 0.2,
        inner_steps: int = 1,
        max_pruning_ca_drop: float = 0.1,
    ) -> None:
        super().__init__()
        check_number("epsilon", epsilon)
        check_number("alpha", alpha, high=1)
        check_number("inner_steps", inner_steps, low=1, whole=True)
        check_number("max_pruning_ca_drop", max_pruning_ca_drop, high=1)
        self.epsilon = epsilon
        self.alpha = alpha
        self.inner_steps = inner_steps
        self.max_pruning_ca_drop = max_pruning_ca_drop
        self._perturbed: list[PerturbedMask | PerturbedShift] = []

    def alpha_range(self, net: nn.Module) -> tuple[float, float]:
        """From 1, which perturbs nothing, to 0.01."""
        return 1.0, 0.01

    def prepare(self, net: nn.Module, generator: torch.Generator) -> None:
        """Put masks on the scales, and make scales and shifts ready for perturbation."""
        super().prepare(net, generator)
        self._perturbed = [m for m in self.masks.values() if isinstance(m, PerturbedMask)]
        for norm in self._norms.values():
            shift = PerturbedShift()
            attach(norm, "bias", shift)
            self._perturbed.append(shift)

    def make_mask(self, scale: Tensor) -> ChannelMask:
        """A mask that can be perturbed."""
        return PerturbedMask(scale)

    def loss(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """The weighted sum of the plain loss and the loss under the worst perturbation found."""
        try:
            natural = self._perturb(net, images, labels)
            perturbed = functional.cross_entropy(net(images), labels)
        finally:
            for module in self._perturbed:
                module.delta = None
        return self.alpha * natural + (1 - self.alpha) * perturbed

    def _perturb(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Set the worst perturbation, and return the loss without one.

        The search starts from zero, so that its first pass is the one without a perturbation. One
        backward pass through it gives the gradient in the masks and in the perturbation.
        """
        masks = [mask.mask for mask in self.masks.values()]
        deltas = [torch.zeros_like(mask) for mask in masks * 2]  # Scales first, then shifts.
        natural: Tensor | None = None
        for _ in range(self.inner_steps):
            for module, delta in zip(self._perturbed, deltas, strict=True):
                module.delta = delta.requires_grad_()
            loss = functional.cross_entropy(net(images), labels)
            if natural is None:
                known = gradients(loss, [*masks, *deltas])
                natural, slopes = (
                    with_gradients(loss, masks, known[: len(masks)]),
                    known[len(masks) :],
                )
            else:
                slopes = gradients(loss, deltas)
            step = self.epsilon / self.inner_steps
            deltas = [
                delta.detach() if slope is None else delta.detach() + step * slope.sign()
                for delta, slope in zip(deltas, slopes, strict=True)
            ]
        for module, delta in zip(self._perturbed, deltas, strict=True):
            module.delta = delta
        assert natural is not None  # There is at least one inner step.
        return natural

    def conclude(self, net: nn.Module, clean: CleanData, generator: torch.Generator) -> None:
        """Prune the channels with the smallest masks."""
        self.cut(net, clean, self.max_pruning_ca_drop)

    def finish(self) -> None:
        """Fold the masks into the scales; undo the freezes."""
        for module in self._perturbed:
            module.delta = None
        self._perturbed = []
        for norm in self._norms.values():
            detach(norm, "bias")
        super().finish()
