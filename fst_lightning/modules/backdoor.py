"""Trains a classifier on poisoned data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.attacks import Attack
from fst_lightning.modules.classifier import (
    ClassifierModule,
    Interval,
    OptimizerFactory,
    SchedulerFactory,
)
from fst_lightning.modules.inputs import InputPipeline


class BackdoorModule(ClassifierModule):
    r"""Train a network on data of which some rows carry a trigger and the attacker's label.

    Minimises :math:`\mathrm{CE}(f(T(x)), \eta(y))` on the poisoned rows and
    :math:`\mathrm{CE}(f(x), y)` on the others. Batches are ``(images, labels, poisoned)``, as
    :class:`~fst_lightning.data.BackdoorDataModule` makes them.

    Args:
        net: the classifier.
        attack: trigger and label map.
        optimizer: makes the optimizer from the parameters; None: SGD, lr 0.01, momentum 0.9.
        scheduler: makes the schedule from the optimizer; None for a constant rate.
        scheduler_interval: ``epoch`` or ``step``.
        mean: per channel, of images in [0, 1]; None for images that are not to be normalised.
        std: per channel.
        crop_padding: pixels of padding for random crops; 0 for none.
        horizontal_flip: mirror half of the training images.
        label_smoothing: 0 to 1.
        seed: makes the random numbers of every epoch reproducible.
        card: JSON text that says what the network is, kept in checkpoints.

    Example:
        >>> from fst_lightning.attacks import BadNets
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
        >>> module = BackdoorModule(net, BadNets(target_label=0))
        >>> module(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        net: nn.Module,
        attack: Attack,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
        scheduler_interval: Interval = "epoch",
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        crop_padding: int = 0,
        horizontal_flip: bool = False,
        label_smoothing: float = 0.0,
        seed: int | None = None,
        card: str | None = None,
    ) -> None:
        inputs = InputPipeline(attack, mean, std, crop_padding, horizontal_flip)
        super().__init__(net, inputs, optimizer, scheduler, scheduler_interval, seed, card)
        self.attack = attack
        self.label_smoothing = label_smoothing

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Cross-entropy on a batch of which some rows are poisoned."""
        images, labels, poisoned = batch
        logits = self.net(self.inputs(images, poisoned, augment=True))
        targets = torch.where(poisoned, self.attack.target_labels(labels, logits.shape[1]), labels)
        loss = functional.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        self.track(loss=loss)
        return loss
