"""Anti-backdoor learning (ABL): isolate what is learned first, and unlearn it at the end.

Example:
    ``python purify.py attack=blended defense=abl``
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.defenses.common.clean_data import LabeledImages, PoisonedData
from fst_lightning.defenses.common.dataset_defense import DatasetDefense, Fit
from fst_lightning.defenses.common.whole_set import accuracy, fresh_copy, keep_modes, tune
from fst_lightning.validate import check_number

_MAX_GRADIENT_NORM = 1.0


class AntiBackdoorLearning(DatasetDefense):
    r"""Isolate the rows with the lowest early loss, train on the others, and unlearn them.

    *How it works.* A trigger is easier to learn than the classes, so that poisoned rows soon have
    the lowest loss. The defense trains a fresh network for a few epochs while it holds the loss of
    each mini-batch at a constant, which keeps clean rows from catching up. The rows with the lowest
    loss are isolated as suspects. A second network is trained on all other rows. Finally, it
    unlearns the isolated rows, because some poisoned rows remain among the others.

    .. math:: \min_\theta |\mathcal{L}_B(\theta) - \gamma| + \gamma, \qquad
        \min_\theta \mathbb{E}_{\text{others}}[\ell] - \mathbb{E}_{\text{isolated}}[\ell]

    with the mean loss :math:`\mathcal{L}_B` of a mini-batch, the held loss :math:`\gamma` and the
    cross-entropy :math:`\ell`: the first objective isolates, the second one unlearns. The gradient
    of the first one is that of the paper's local gradient ascent,
    :math:`\operatorname{sgn}(\mathcal{L}_B - \gamma)\,\mathcal{L}_B`.

    Args:
        gamma: Loss :math:`\gamma` that is held, 0 or more.
        isolation_ratio: Share of the rows that is isolated, greater than 0 and less than 1.
        isolation_epochs: Epochs of the isolation, 1 or more.
        isolation_lr: Learning rate of the isolation (SGD with momentum 0.9 and a cosine schedule),
            greater than 0.
        unlearn_epochs: Passes over the isolated rows in unlearning at most, 0 or more.
        unlearn_lr: Learning rate of unlearning (SGD with momentum 0.9), greater than 0.
        batch_size: Images per step of isolation and unlearning, 2 or more.

    Shape:
        - images: ``(N, C, H, W)``, the training set as it was delivered.
        - labels: ``(N,)`` int64, as delivered.
        - :meth:`suspects`: ``(N,)`` bool.

    Raises:
        ValueError: If an argument is out of its range.

    Needs:
        The training set as it was delivered, and the recipe to train a network on it. No clean
        images.

    Cost:
        Two trainings: ``isolation_epochs`` of the first network, and the recipe of the backdoored
        network for the second. Unlearning adds at most ``unlearn_epochs`` passes over the isolated
        rows.

    When it fails:
        If the trigger is not learned faster than the classes, clean rows are isolated instead. If
        ``isolation_ratio`` is below the poison ratio, most poisoned rows stay in the training, and
        only unlearning makes up for it.

    Note:
        The published scripts continue training the first network; here a fresh one is trained by
        the recipe of the backdoored network. Gradients of unlearning are clipped to norm 1, and it
        stops once no isolated row gets its label: its loss has no lower bound, and further steps
        would only cost clean accuracy.

    Example:
        >>> AntiBackdoorLearning(isolation_ratio=0.05).isolation_ratio
        0.05

    References:
        Li, Lyu, Koren, Lyu, Li and Ma, "Anti-backdoor learning: Training clean models on poisoned
        data", NeurIPS 2021, arXiv 2110.11571.

    See Also:
        - :class:`~fst_lightning.defenses.DecouplingDefense`: trains without labels first.
        - :class:`~fst_lightning.defenses.SpectralSignatures`: finds rows by their features.
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
        """The rows with the lowest loss after the isolation, ``(N,)`` bool."""
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
        """Train a fresh network on the other rows, and unlearn the isolated ones."""
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
            # Mini-batches of isolated rows alone would move BatchNorm's statistics to the trigger.
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
        """The number of isolated rows, their loss, and their accuracy around unlearning."""
        found = super().findings()
        if self.losses.numel():
            chosen = self.losses[self.suspected.to(self.losses.device)]
            found["isolated_loss"] = float(chosen.max()) if len(chosen) else None
            found["median_loss"] = float(self.losses.median())
        if self.unlearned.numel():
            found["isolated_right"] = [round(value, 4) for value in self.unlearned.tolist()]
        return found


@torch.no_grad()
def losses_of(net: nn.Module, images: LabeledImages, batch_size: int = 500) -> Tensor:
    """The cross-entropy of each image, ``(N,)``, with the network in its current mode."""
    return torch.cat(
        [
            functional.cross_entropy(net(batch).float(), labels, reduction="none")
            for batch, labels in images.batches(batch_size)
        ]
    )
