"""Stops training when the loss is no longer finite."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import torch
from torch import Tensor

_MOST_KEPT = 1000


class FiniteLoss(L.Callback):
    """Stop when the loss or weights become NaN or infinite, and name the step.

    The check runs once per epoch (and every thousand steps), before a checkpoint is written: the
    last one is always good, and no step waits for the device. Loss scaling (fp16) skips a step
    whose loss is not finite, which does not stop the training.

    Args:
        advice: The last sentence of the error, for example which settings to change.

    Raises:
        FloatingPointError: If a number is not finite; names the step, its learning rate and the
            last good checkpoint.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[FiniteLoss()], logger=False)
    """

    def __init__(self, advice: str = "Try a lower learning rate.") -> None:
        self.advice = advice
        self._step = (0, 0.0)
        self._losses: list[tuple[tuple[int, Any], Tensor]] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Discard an unfinished epoch."""
        self._losses = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Record the step's number and learning rate, which change at its end."""
        rate = trainer.optimizers[0].param_groups[0]["lr"] if trainer.optimizers else 0.0
        self._step = (trainer.global_step + 1, rate)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Keep the step's loss, on its device."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):  # Manual optimization may return no loss.
            self._losses.append((self._step, loss.detach()))
        if len(self._losses) == _MOST_KEPT:
            self._check(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the losses of the epoch, and the weights after its last step."""
        self._check(trainer)

    def _check(self, trainer: L.Trainer) -> None:
        kept, self._losses = self._losses, []
        losses = torch.stack([loss.float() for _, loss in kept]).tolist() if kept else []
        first = len(losses)
        while first > 0 and not math.isfinite(losses[first - 1]):
            first -= 1
        norm = self._norm(trainer.lightning_module)
        # Loss scaling skips a step that overflows, which does not change the weights.
        if losses and first < len(losses) and (first == 0 or not math.isfinite(norm)):
            self._stop(trainer, kept[first][0], "the loss has been", losses[first])
        if not math.isfinite(norm):
            self._stop(trainer, self._step, "the weights have been", norm)

    def _norm(self, module: L.LightningModule) -> float:
        weights = [p.detach() for p in module.parameters() if p.is_floating_point()]
        return float(torch.nn.utils.get_total_norm(weights)) if weights else 0.0

    def _stop(self, trainer: L.Trainer, step: tuple[int, Any], what: str, value: float) -> None:
        number, rate = step
        paths = [getattr(saved, "best_model_path", "") for saved in trainer.checkpoint_callbacks]
        saved = next(filter(None, [*paths, trainer.ckpt_path]), None)
        kept = f"The last good checkpoint is {saved}" if saved else "No checkpoint is kept yet"
        raise FloatingPointError(
            f"Expected finite numbers, but {what} {value} since step {number} (epoch "
            f"{trainer.current_epoch + 1}), at a learning rate of {float(rate):g}. {kept}. "
            f"{self.advice}"
        )
