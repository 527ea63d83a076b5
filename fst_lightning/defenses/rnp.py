"""Reconstructive neuron pruning (RNP): unlearn the clean task, then see what recovers it.

Example:
    ``python purify.py attack=blended defense=rnp defense.max_pruning_ca_drop=0.05``
"""

from __future__ import annotations

from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.defenses.common.channel_masks import MaskDefense
from fst_lightning.defenses.common.clean_data import CleanData
from fst_lightning.defenses.common.whole_set import keep_modes, seeded
from fst_lightning.validate import check_number

_MAX_GRADIENT_NORM = 20.0
_ASKED = 500
"""Number of last images over which unlearning is measured, as many as one epoch in the paper has.
After a pass over thousands, the network has forgotten everything, including the trigger."""


class ReconstructiveNeuronPruning(MaskDefense):
    r"""Unlearn clean images, recover them with channel masks, and prune the original network.

    *How it works.* A network that is trained to make mistakes on clean images forgets its classes
    before it forgets the trigger. The defense does this on purpose. It then learns a mask for each
    channel, with all weights frozen, so that the network classifies clean images again. The
    channels that have to be masked are those that still serve the backdoor. They are pruned in the
    original network, as many as held-out clean accuracy allows.

    .. math:: \hat\theta = \arg\max_\theta \mathrm{CE}(f_\theta(x), y) \;\text{until accuracy}
        \le \tau, \qquad
        \min_{m \in [0, 1]} \alpha\,\mathrm{CE}(f_{\hat\theta, m \odot \gamma}(x), y)

    with the network :math:`f`, its weights :math:`\theta`, clean images :math:`x` with labels
    :math:`y`, the accuracy :math:`\tau`, the masks :math:`m` on the scales :math:`\gamma` of
    BatchNorm and the weight :math:`\alpha`.

    Args:
        alpha: Weight :math:`\alpha` of the loss while recovering, greater than 0.
        unlearn_accuracy: Training accuracy :math:`\tau` over the last 500 images at which
            unlearning stops, 0 to 1.
        unlearn_epochs: Passes over the clean images after which unlearning stops in any case, 0 or
            more.
        unlearn_lr: Learning rate of unlearning (SGD with momentum 0.9), greater than 0.
        unlearn_batch_size: Images per step of unlearning, 2 or more.
        max_pruning_ca_drop: Held-out clean accuracy that pruning may cost, 0 to 1.

    Shape:
        - images: ``(N, C, H, W)`` float, normalized.
        - labels: ``(N,)`` int64.

    Raises:
        ValueError: If an argument is out of its range, or the network has no BatchNorm layer.
        RuntimeError: If unlearning leaves weights that are not finite.

    Needs:
        Clean images with true labels, and BatchNorm layers with a scale.

    Cost:
        At most ``unlearn_epochs`` passes to unlearn, then one forward and backward pass per step
        for the masks. At the end, held-out images are classified once per candidate threshold.

    When it fails:
        In a narrow network the same channels serve the backdoor and the clean task. Pruning them
        costs more than ``max_pruning_ca_drop`` allows, and nothing is pruned.

    Note:
        The public scripts choose the pruning threshold on the test set; here a held-out fifth of
        the clean images decides. The gradient is clipped to norm 20 before each step of unlearning;
        the public code clips before the backward pass, which has no effect. ``alpha`` only scales
        the loss, so that ``alpha=auto`` does not apply.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
        >>> defense = ReconstructiveNeuronPruning()
        >>> defense.prepare(net, torch.Generator())
        >>> len(defense.original)  # everything that unlearning may change, kept in one vector
        129

    References:
        Li, Lyu, Ma, Koren, Lyu, Li and Jiang, "Reconstructive neuron pruning for backdoor defense",
        ICML 2023, arXiv 2305.14876.

    See Also:
        - :class:`~fst_lightning.defenses.AdversarialNeuronPruning`: masks under perturbations.
        - :class:`~fst_lightning.defenses.NeuralMaskFineTuning`: masks without pruning.
    """

    held_out: ClassVar[float] = 0.2
    alpha_is_strength: ClassVar[bool] = False
    original: Tensor
    """The original network: parameters and buffers in one vector; empty before preparation."""
    unlearned: Tensor
    """The training accuracy at which unlearning stopped, a scalar; empty before."""

    def __init__(
        self,
        alpha: float = 0.2,
        unlearn_accuracy: float = 0.2,
        unlearn_epochs: int = 20,
        unlearn_lr: float = 0.01,
        unlearn_batch_size: int = 128,
        max_pruning_ca_drop: float = 0.1,
    ) -> None:
        super().__init__()
        check_number("alpha", alpha, low_open=True)
        check_number("unlearn_accuracy", unlearn_accuracy, high=1)
        check_number("unlearn_epochs", unlearn_epochs, whole=True)
        check_number("unlearn_lr", unlearn_lr, low_open=True)
        check_number("unlearn_batch_size", unlearn_batch_size, low=2, whole=True)
        check_number("max_pruning_ca_drop", max_pruning_ca_drop, high=1)
        self.alpha = alpha
        self.unlearn_accuracy = unlearn_accuracy
        self.unlearn_epochs = unlearn_epochs
        self.unlearn_lr = unlearn_lr
        self.unlearn_batch_size = unlearn_batch_size
        self.max_pruning_ca_drop = max_pruning_ca_drop
        self.register_buffer("original", torch.empty(0))
        self.register_buffer("unlearned", torch.empty(0))
        self._restored = True

    def prepare(self, net: nn.Module, generator: torch.Generator) -> None:
        """Put the masks on, and copy everything else."""
        super().prepare(net, generator)
        with torch.no_grad():
            self.original = torch.cat([value.detach().flatten() for value in self._state()])
        self.unlearned = self.original.new_empty(0)
        self._restored = False

    def _state(self) -> list[Tensor]:
        masks = {id(mask.mask) for mask in self.masks.values()}
        return [
            value
            for net in self._net
            for value in (*net.parameters(), *net.buffers())
            if id(value) not in masks
        ]

    @torch.no_grad()
    def _restore(self) -> None:
        if self._restored:
            return
        start = 0
        for value in self._state():
            stop = start + value.numel()
            value.copy_(self.original[start:stop].view_as(value))
            start = stop
        self._restored = True

    def study(self, net: nn.Module, clean: CleanData, generator: torch.Generator) -> None:
        """Increase the loss on the clean images until the accuracy is low enough."""
        masks = [mask.mask for mask in self.masks.values()]
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        optimizer = torch.optim.SGD(self._frozen, lr=self.unlearn_lr, momentum=0.9)
        asked = min(_ASKED, len(clean))
        recent = torch.ones(asked, device=clean.device)
        with keep_modes(net), seeded(generator, clean.device):
            net.train()
            passes = (
                clean.batches(self.unlearn_batch_size, generator)
                for _ in range(self.unlearn_epochs)
            )
            for images, labels in chain.from_iterable(passes):
                optimizer.zero_grad()
                logits = net(images)
                torch.autograd.backward(-functional.cross_entropy(logits, labels))
                # The loss has no upper bound: without a limit the weights soon overflow.
                nn.utils.clip_grad_norm_(self._frozen, max_norm=_MAX_GRADIENT_NORM)
                optimizer.step()
                right = (logits.argmax(1) == labels).to(recent)
                recent = torch.cat([recent, right])[-asked:]
                if float(recent.mean()) <= self.unlearn_accuracy:
                    break
        optimizer.zero_grad()
        for mask in masks:
            mask.grad = None
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        if not all(bool(torch.isfinite(value).all()) for value in self._frozen):
            raise RuntimeError(
                "Expected unlearning to leave finite weights, but got infinity or NaN. Lower "
                f"`unlearn_lr`, now {self.unlearn_lr:g}."
            )
        self.unlearned = recent.mean().to(self.original)

    def loss(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """The cross-entropy of the unlearned network with its masks, times alpha."""
        return self.alpha * functional.cross_entropy(net(images), labels)

    def conclude(self, net: nn.Module, clean: CleanData, generator: torch.Generator) -> None:
        """Restore the original network, and prune the channels with the smallest masks."""
        self._restore()
        self.cut(net, clean, self.max_pruning_ca_drop)

    def finish(self) -> None:
        """Restore the original network if that is still to do; fold masks and undo freezes."""
        self._restore()
        super().finish()

    def findings(self) -> dict[str, Any]:
        """The accuracy at which unlearning stopped, and what was pruned."""
        unlearned = float(self.unlearned) if self.unlearned.numel() else None
        return {"unlearned_accuracy": unlearned, **super().findings()}
