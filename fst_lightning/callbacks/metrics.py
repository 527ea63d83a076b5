"""CA, ASR and RA in somebody else's LightningModule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor

from fst_lightning.attacks import Attack
from fst_lightning.metrics import BackdoorMetrics
from fst_lightning.modules.inputs import InputPipeline


class BackdoorMetricsCallback(L.Callback):
    """Measure CA, ASR and RA on the validation and test batches of any LightningModule.

    Every batch is classified once more as it is, for the clean accuracy, and once with the trigger,
    for the attack success rate and the robust accuracy (rows that the attacker's label map leaves
    alone don't count). Logs ``val/ca``, ``val/asr``, ``val/ra`` and the same under ``test/``.

    The module's ``forward`` has to take images and return logits ``(N, C)``; its batches have to
    start with images ``(N, C, H, W)`` and labels ``(N,)``.

    Args:
        attack: whose trigger to use; ``prepare`` it first for images that are not 32 x 32.
        mean: per channel, which the module's loader subtracted; None for images in [0, 1].
        std: per channel, by which the loader divided.

    Raises:
        TypeError: for batches that are no sequence of images and labels.

    Example:
        >>> from fst_lightning.attacks import BadNets
        >>> callback = BackdoorMetricsCallback(BadNets(), mean=[0.5] * 3, std=[0.25] * 3)
    """

    def __init__(
        self,
        attack: Attack,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        self.inputs = InputPipeline(attack, mean, std)
        self.attack = attack
        self.metrics = BackdoorMetrics()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Move to the module's device."""
        self.inputs.to(trainer.strategy.root_device)
        self.metrics.to(trainer.strategy.root_device)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Classify the batch with and without the trigger."""
        self._count(trainer, pl_module, batch, dataloader_idx)

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Classify the batch with and without the trigger."""
        self._count(trainer, pl_module, batch, dataloader_idx)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the rates."""
        self._log(pl_module, "val")

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the rates."""
        self._log(pl_module, "test")

    @torch.no_grad()
    def _count(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, dataloader_idx: int
    ) -> None:
        if dataloader_idx > 0:
            return
        if not (isinstance(batch, list | tuple) and len(batch) >= 2):
            raise TypeError(
                "Expected batches that start with images and labels, but got "
                f"{type(batch).__name__}; wrap the loader, or measure with PurificationModule."
            )
        images, labels = batch[0], batch[1]
        with trainer.precision_plugin.forward_context():
            clean = pl_module(images)
            self.metrics.update_clean(clean, labels)
            rows = self.attack.counts_for_asr(labels)
            if bool(rows.any()):
                stamped = self.inputs(self._unit_range(images[rows]), triggered=True)
                triggered = pl_module(stamped)
                targets = self.attack.target_labels(labels[rows], clean.shape[1])
                self.metrics.update_triggered(triggered, labels[rows], targets)

    def _unit_range(self, images: Tensor) -> Tensor:
        return images * self.inputs.std + self.inputs.mean if self.inputs.normalises else images

    def _log(self, pl_module: L.LightningModule, stage: Literal["val", "test"]) -> None:
        for name, rate in self.metrics.compute().items():
            if rate is not None:
                pl_module.log(f"{stage}/{name}", rate, prog_bar=stage == "val")
        self.metrics.reset()
