"""Anti-backdoor learning (ABL): what is learned first is isolated, and unlearned at the end.

Li et al., "Anti-backdoor learning: training clean models on poisoned data", NeurIPS 2021, arXiv
2110.11571.

Example:
    ``python purify.py attack=blended defense=abl``
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.defenses.common.channel_masks import check_number
from fst_lightning.defenses.common.clean_data import LabelledImages, PoisonedData
from fst_lightning.defenses.common.dataset_defense import DatasetDefense, Fit
from fst_lightning.defenses.common.whole_set import accuracy, fresh_copy, keep_modes, tune

_MAX_GRADIENT_NORM = 1.0


class AntiBackdoorLearning(DatasetDefense):
    r"""Isolate the rows of least loss early in a training, train on the others, unlearn them.

    1. *Isolation*: a fresh network is trained while the loss of a batch is held at
       :math:`\gamma`,

       .. math:: \min_\theta |\mathcal{L}_B(\theta) - \gamma| + \gamma,

       whose gradient is that of the paper's local gradient ascent
       :math:`\operatorname{sgn}(\mathcal{L}_B - \gamma)\,\mathcal{L}_B`. A trigger is learned
       before anything else, so that the rows of least loss are poisoned.
    2. *Training* anew on the other rows, by the recipe of the network that came in. The published
       scripts go on from the first network.
    3. *Unlearning*: :math:`\min_\theta \mathbb{E}_{\text{others}}[\ell] -
       \mathbb{E}_{\text{isolated}}[\ell]`, gradients clipped to norm 1, until none of the isolated
       rows gets its label any more: the second term has no lower bound, and further steps would
       cost clean accuracy alone.

    The isolated rows are those that are suspected: with an isolation ratio below the poison ratio
    most poisoned rows stay in the training, and only the third step makes up for it.

    Args:
        gamma: the loss that is held, 0 or more.
        isolation_ratio: share of the rows that are isolated, above 0, below 1.
        isolation_epochs: passes of the first step, 1 or more.
        isolation_lr: of SGD with momentum 0.9 and a cosine, above 0.
        unlearn_epochs: passes over the isolated rows of the third step, 0 or more, at most.
        unlearn_lr: of SGD with momentum 0.9, above 0.
        batch_size: images a step of the first and third step, 2 or more.

    Raises:
        ValueError: for an argument out of its range.

    Example:
        >>> AntiBackdoorLearning(isolation_ratio=0.05).isolation_ratio
        0.05
    """

    losses: Tensor
    """``(N,)``, the loss of every row after the first step; empty before it."""

    unlearned: Tensor
    """The share of the isolated rows that get their delivered label before and after unlearning."""

    def __init__(
        self,
        gamma: float = 0.5,
        isolation_ratio: float = 0.01,
        isolation_epochs: int = 20,
        isolation_lr: float = 0.1,
        unlearn_epochs: int = 20,
        unlearn_lr: float = 1e-4,
        batch_size: int = 128,
    ) -> None:
        super().__init__()
        check_number("gamma", gamma)
        check_number("isolation_ratio", isolation_ratio, low_open=True, high=0.999)
        check_number("isolation_epochs", isolation_epochs, low=1, whole=True)
        check_number("isolation_lr", isolation_lr, low_open=True)
        check_number("unlearn_epochs", unlearn_epochs, whole=True)
        check_number("unlearn_lr", unlearn_lr, low_open=True)
        check_number("batch_size", batch_size, low=2, whole=True)
        self.gamma = gamma
        self.isolation_ratio = isolation_ratio
        self.isolation_epochs = isolation_epochs
        self.isolation_lr = isolation_lr
        self.unlearn_epochs = unlearn_epochs
        self.unlearn_lr = unlearn_lr
        self.batch_size = batch_size
        self.register_buffer("losses", torch.empty(0))
        self.register_buffer("unlearned", torch.empty(0))

    def suspects(
        self, net: nn.Module, poisoned: PoisonedData, generator: torch.Generator
    ) -> Tensor:
        """The rows of least loss after the first step, ``(N,)`` bool."""
        fresh = fresh_copy(net, generator)
        fresh.requires_grad_(True)

        def flooded(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
            loss = functional.cross_entropy(net(images), labels)
            return (loss - self.gamma).abs() + self.gamma

        tune(
            fresh,
            poisoned,
            generator,
            epochs=self.isolation_epochs,
            lr=self.isolation_lr,
            batch_size=self.batch_size,
            loss=flooded,
        )
        self.losses = losses_of(fresh.eval(), poisoned).cpu()
        count = max(1, round(self.isolation_ratio * len(poisoned)))
        found = torch.zeros(len(poisoned), dtype=torch.bool)
        found[self.losses.argsort(stable=True)[:count]] = True
        return found

    def retrain(
        self,
        make_net: Callable[[], nn.Module],
        poisoned: PoisonedData,
        suspects: Tensor,
        generator: torch.Generator,
        fit: Fit,
    ) -> nn.Module | None:
        """Train a fresh network on the others, and let it unlearn the isolated rows."""
        net = super().retrain(make_net, poisoned, suspects, generator, fit)
        if net is None:
            return None
        net = net.to(poisoned.device)
        others, isolated = poisoned.subset(~suspects), poisoned.subset(suspects)
        before = accuracy(net, isolated)
        self._unlearn(net, others, isolated, generator)
        self.unlearned = torch.tensor([before, accuracy(net, isolated)])
        return net

    def _unlearn(
        self,
        net: nn.Module,
        others: PoisonedData,
        isolated: PoisonedData,
        generator: torch.Generator,
    ) -> None:
        weights = [parameter for parameter in net.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(weights, lr=self.unlearn_lr, momentum=0.9)
        with keep_modes(net):
            # Batches of isolated rows alone would pull BatchNorm's statistics to the trigger.
            net.eval()
            for _ in range(self.unlearn_epochs):
                right = 0
                mates = others.batches(self.batch_size, generator)
                for images, labels in isolated.batches(self.batch_size, generator):
                    kept, true = next(mates, (images[:0], labels[:0]))
                    optimizer.zero_grad()
                    logits = net(torch.cat([images, kept]))
                    wrong = functional.cross_entropy(logits[: len(images)], labels)
                    loss = -wrong
                    if len(kept):
                        loss = loss + functional.cross_entropy(logits[len(images) :], true)
                    torch.autograd.backward(loss)
                    nn.utils.clip_grad_norm_(weights, _MAX_GRADIENT_NORM)
                    optimizer.step()
                    right += int((logits[: len(images)].argmax(1) == labels).sum())
                if not right:
                    break
        optimizer.zero_grad()

    def findings(self) -> dict[str, Any]:
        """How many rows were isolated, by what loss, and how far they were unlearned."""
        found = super().findings()
        if self.losses.numel():
            chosen = self.losses[self.suspected.to(self.losses.device)]
            found["isolated_loss"] = float(chosen.max()) if len(chosen) else None
            found["median_loss"] = float(self.losses.median())
        if self.unlearned.numel():
            found["isolated_right"] = [round(value, 4) for value in self.unlearned.tolist()]
        return found


@torch.no_grad()
def losses_of(net: nn.Module, images: LabelledImages, batch_size: int = 500) -> Tensor:
    """The cross-entropy of every image, ``(N,)``, with the network in the mode that it is in."""
    return torch.cat(
        [
            functional.cross_entropy(net(batch).float(), labels, reduction="none")
            for batch, labels in images.batches(batch_size)
        ]
    )
