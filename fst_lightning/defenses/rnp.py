"""Reconstructive neuron pruning (RNP): unlearn the clean task, then see what recovers it.

Li, Lyu, Ma, Koren, Lyu, Li and Jiang, "Reconstructive neuron pruning for backdoor defense",
ICML 2023, arXiv 2305.14876.

Example:
    ``python purify.py attack=blended defense=rnp defense.max_pruning_ca_drop=0.05``
"""

from __future__ import annotations

from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.defenses.common.channel_masks import MaskDefense, check_number
from fst_lightning.defenses.common.clean_data import CleanData
from fst_lightning.defenses.common.whole_set import keep_modes, seeded

_MAX_GRADIENT_NORM = 20.0
_ASKED = 500
"""So many of the last images say how much is unlearned, as in an epoch of the paper's: after a pass
over thousands the network has long forgotten everything, the trigger included."""


class ReconstructiveNeuronPruning(MaskDefense):
    r"""Unlearn on clean images, recover with channel masks, prune the network that came in.

    .. math:: \hat\theta = \arg\max_\theta \mathrm{CE}(f_\theta(x), y) \;\text{until accuracy}
        \le \tau, \qquad
        \min_{m \in [0, 1]} \alpha\,\mathrm{CE}(f_{\hat\theta, m \odot \gamma}(x), y)

    Ascending on clean images makes a network forget its classes before it forgets the trigger. The
    channels that have to be masked before it classifies again are those of the trigger: where the
    mask is small, :math:`\gamma_c = 0` in the *original* network. How many, held-out clean accuracy
    decides; the published scripts take the threshold from the test set.

    Args:
        alpha: weight of the loss while recovering, greater than 0.
        unlearn_accuracy: unlearning stops at this training accuracy over the last 500 images, in
            [0, 1].
        unlearn_epochs: or after so many passes over the clean images, 0 or more.
        unlearn_lr: of SGD with momentum 0.9 while unlearning, greater than 0.
        unlearn_batch_size: images a step while unlearning, 2 or more.
        max_pruning_ca_drop: how much held-out clean accuracy may be lost to pruning, in [0, 1].

    Raises:
        ValueError: for an argument out of its range; for a network without BatchNorm.
        RuntimeError: where unlearning left numbers that are not finite.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
        >>> defense = ReconstructiveNeuronPruning()
        >>> defense.prepare(net, torch.Generator())
        >>> len(defense.original)  # everything that unlearning may change, kept in one vector
        129
    """

    held_out: ClassVar[float] = 0.2
    alpha_is_strength: ClassVar[bool] = False
    original: Tensor
    """The network that came in: parameters and buffers in one vector; empty before preparation."""
    unlearned: Tensor
    """The training accuracy that unlearning ended at, a scalar; empty before it."""

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
        """Put the masks on, and keep a copy of everything else."""
        super().prepare(net, generator)
        with torch.no_grad():
            self.original = torch.cat([value.detach().flatten() for value in self._state()])
        self.unlearned = self.original.new_empty(0)
        self._restored = False

    def _state(self) -> list[Tensor]:
        masks = {id(mask.mask) for mask in self._masks.values()}
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
        """Ascend on the clean images until they are classified no better than by chance."""
        masks = [mask.mask for mask in self._masks.values()]
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
        """The cross-entropy of the unlearned network under its masks, times alpha."""
        return self.alpha * functional.cross_entropy(net(images), labels)

    def conclude(self, net: nn.Module, clean: CleanData, generator: torch.Generator) -> None:
        """Bring the original network back and prune the channels with the smallest masks."""
        self._restore()
        self.cut(net, clean, self.max_pruning_ca_drop)

    def finish(self) -> None:
        """Bring the original network back where that was not done; fold masks, undo freezes."""
        self._restore()
        super().finish()

    def findings(self) -> dict[str, Any]:
        """How far unlearning went, and what was pruned."""
        unlearned = float(self.unlearned) if self.unlearned.numel() else None
        return {"unlearned_accuracy": unlearned, **super().findings()}
