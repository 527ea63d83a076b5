"""CA, ASR and RA in any LightningModule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor

from fst_lightning.attacks import Attack, check_pixels
from fst_lightning.metrics import BackdoorMetrics
from fst_lightning.models import logits_of
from fst_lightning.modules.batches import class_numbers, images_and_labels
from fst_lightning.modules.inputs import InputPipeline

_NORMALIZED = (
    "If the loader normalizes, pass the `mean` and `std` that it uses; for floats in 0..255 pass "
    "mean=[0.0] * 3 and std=[1 / 255] * 3."
)
_OTHER_STATISTICS = (
    "The normalization was undone with the given `mean` and `std`: pass those that the loader uses."
)


class BackdoorMetricsCallback(L.Callback):
    """Measure CA, ASR and RA on the validation and test batches of any LightningModule.

    Each mini-batch is classified once unchanged, for the clean accuracy, and once with the trigger,
    for the attack success rate and the robust accuracy, without rows that the label map excludes.
    Logs ``val/ca``, ``val/asr``, ``val/ra`` and the same under ``test/``.

    The module's ``forward`` takes images and returns logits ``(N, C)``, alone or as ``logits`` of a
    dictionary or an object. Batches start with images ``(N, C, H, W)`` and labels ``(N,)``, or are
    dictionaries that hold both under a usual name. The first batch of every evaluation is checked.

    Args:
        attack: The attack with the trigger. It draws the trigger for the size of the first batch
            unless it was prepared.
        mean: Mean per channel that the loader subtracts; None for images in [0, 1] or uint8. For
            floats in 0..255 pass ``[0.0] * 3`` and ``[1 / 255] * 3``.
        std: Standard deviation per channel that the loader divides by.

    Raises:
        TypeError: If a batch or an output has another form.
        ValueError: If the images are not in [0, 1], or not after the normalization is undone; if
            the attack's target or a label is not a class of the network; if the network has one
            logit only, or the trigger has to be fitted or learned first.

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
        self._first = True

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Move to the module's device."""
        self.inputs.to(trainer.strategy.root_device)
        self.metrics.to(trainer.strategy.root_device)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the first batch."""
        self._first = True

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the first batch."""
        self._first = True

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
        images, labels = images_and_labels(batch)
        with trainer.precision_plugin.forward_context():
            logits = logits_of(pl_module(images))
            labels = class_numbers(labels, len(images), logits.shape[1])
            if self._first:
                self._first = False
                self._check(images, num_classes=logits.shape[1])
            self.metrics.update_clean(logits, labels)
            rows = self.attack.counts_for_asr(labels)
            if bool(rows.any()):
                answers = logits_of(pl_module(self._stamped(images[rows])))
                wanted = self.attack.wanted_labels(answers, labels[rows])
                self.metrics.update_triggered(answers, labels[rows], wanted)

    def _check(self, images: Tensor, num_classes: int) -> None:
        self.attack.check_ready()
        self.attack.check_target(num_classes)
        if not self.inputs.normalizes:
            if images.dtype != torch.uint8:
                check_pixels(images, _NORMALIZED)
            return
        if images.dtype == torch.uint8:
            raise ValueError(
                "Expected normalized images, as `mean` and `std` are given, but got uint8. Leave "
                "`mean` and `std` out."
            )
        low, high = float(images.min()), float(images.max())
        # Values below the mean are negative after normalization.
        if low >= 0 and high <= 1 and bool((self.inputs.mean > 0).any()):
            raise ValueError(
                "Expected normalized images, as `mean` and `std` are given, but got values from "
                f"{low:.4g} to {high:.4g}. Leave `mean` and `std` out if the loader does not "
                "normalize."
            )
        check_pixels(self._pixels(images), _OTHER_STATISTICS)

    def _pixels(self, images: Tensor) -> Tensor:
        # Low precision would round k/255 to another value.
        precise = images.to(torch.promote_types(images.dtype, torch.float32))
        return self.inputs.denormalized(precise)

    def _stamped(self, images: Tensor) -> Tensor:
        """Add the trigger to images of the loader, in the loader's normalization."""
        if images.dtype == torch.uint8:
            pixels: Tensor = self.inputs(images, triggered=True)
            return (pixels * 255).round().to(torch.uint8)
        stamped: Tensor = self.inputs(self._pixels(images), triggered=True)
        return stamped.to(images.dtype)

    def _log(self, pl_module: L.LightningModule, stage: Literal["val", "test"]) -> None:
        for name, rate in self.metrics.compute().items():
            if rate is not None:
                pl_module.log(f"{stage}/{name}", rate, prog_bar=stage == "val")
        self.metrics.reset()
