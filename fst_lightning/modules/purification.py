"""Runs any defense on a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from fst_lightning.attacks import Attack
from fst_lightning.defenses import Defense
from fst_lightning.modules.classifier import (
    ClassifierModule,
    Interval,
    OptimizerFactory,
    SchedulerFactory,
)
from fst_lightning.modules.inputs import InputPipeline


class PurificationModule(ClassifierModule):
    r"""Tune a backdoored network on clean images the way a defense says.

    Batches are ``(images, labels, ...)``, clean. The defense prepares the network when a fit is set
    up: after the data, before the optimizer is made and before a checkpoint is restored.

    Args:
        net: the network to purify, in place.
        defense: what to do to it.
        optimizer: makes the optimizer from the parameters; None: SGD, lr 0.01, momentum 0.9.
        scheduler: makes the schedule from the optimizer; None for a constant rate.
        scheduler_interval: ``epoch`` or ``step``.
        attack: whose trigger to measure with; the defense never sees it. None measures CA only.
        mean: per channel, of images in [0, 1]; None for images that are normalised already.
        std: per channel.
        crop_padding: pixels of padding for random crops; 0 for none.
        horizontal_flip: mirror half of the images while tuning.
        seed: of the defense's random numbers and of every epoch's; None takes
            ``torch.initial_seed()`` for the former.
        card: JSON text that says what the network is, kept in checkpoints.

    Example:
        >>> from fst_lightning.defenses import FST
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
        >>> module = PurificationModule(net, FST(alpha=0.2))
        >>> module.defense.alpha
        0.2
    """

    def __init__(
        self,
        net: nn.Module,
        defense: Defense,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
        scheduler_interval: Interval = "epoch",
        *,
        attack: Attack | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        crop_padding: int = 0,
        horizontal_flip: bool = False,
        seed: int | None = None,
        card: str | None = None,
    ) -> None:
        inputs = InputPipeline(attack, mean, std, crop_padding, horizontal_flip)
        super().__init__(net, inputs, optimizer, scheduler, scheduler_interval, seed, card)
        self.defense = defense

    def setup(self, stage: str) -> None:
        """Let the defense prepare the network."""
        if stage == "fit":
            seed = torch.initial_seed() if self.seed is None else self.seed
            self.defense.prepare(self.net, torch.Generator().manual_seed(seed))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Make the optimizer and its schedule, and let the defense act after every step."""
        configured = super().configure_optimizers()
        optimizer = configured["optimizer"] if isinstance(configured, dict) else configured
        if isinstance(optimizer, Optimizer):
            optimizer.register_step_post_hook(lambda *_: self.defense.after_step())
        return configured

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the modes that the defense wants; every time, for a run may resume mid-epoch."""
        super().on_train_batch_start(batch, batch_idx)
        for module in self.defense.always_eval():
            module.eval()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The defense's loss on a clean batch, and its penalty on the weights."""
        images, labels = batch[0], batch[1]
        loss = self.defense.loss(self.net, self.inputs(images, augment=True), labels)
        penalty = self.defense.penalty()
        if penalty is None:
            self.track(loss=loss)
            return loss
        total = loss + penalty
        self.track(loss=total, penalty=penalty)
        return total

    def on_train_epoch_end(self) -> None:
        """Log the epoch's means and what the defense wants seen."""
        super().on_train_epoch_end()
        for name, value in self.defense.statistics().items():
            self.log(f"train/{name}", value)

    def on_fit_end(self) -> None:
        """Leave the network as an ordinary one."""
        self.defense.finish()
