"""Suggests a batch size that fits if a device runs out of memory."""

from __future__ import annotations

import gc
import traceback
from typing import Any

import lightning as L
import torch
from torch import Tensor


class BatchSizeAdvice(L.Callback):
    """Add to an out-of-memory error the batch size that fits, found by trying halves.

    It repeats the forward and backward pass with a half, a quarter, ... of the batch that did not
    fit, adds the result to the error, and raises it again.

    Args:
        key: Name of the batch size in the error.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[BatchSizeAdvice()], logger=False)
    """

    def __init__(self, key: str = "batch_size") -> None:
        self.key = key
        self._batch: Any = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the mini-batch."""
        self._batch = batch

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Release the mini-batch."""
        self._batch = None

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Try smaller mini-batches if the device ran out of memory."""
        batch, self._batch = self._batch, None
        if not isinstance(exception, torch.OutOfMemoryError) or not isinstance(batch, list | tuple):
            return
        size = max(len(part) for part in batch if isinstance(part, Tensor))
        traceback.clear_frames(exception.__traceback__)  # Tracebacks keep the step's tensors alive.
        if trainer.world_size > 1:
            # A single process would wait for the gradients of the others.
            exception.add_note(f"A batch of {size} on each device does not fit: lower {self.key}.")
            return
        fitting = size // 2
        while fitting > 1 and not self._fits(trainer, pl_module, batch, fitting):
            fitting //= 2
        if fitting > 1:
            exception.add_note(
                f"A batch of {size} does not fit, one of {fitting} does: {self.key}={fitting}, "
                f"with trainer.accumulate_grad_batches={-(-size // fitting)} for steps as before."
            )
        else:
            exception.add_note("Not even a batch of 2 fits: take a smaller network or images.")

    def _fits(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, size: int) -> bool:
        part = [value[:size] if isinstance(value, Tensor) else value for value in batch]
        module.zero_grad(set_to_none=True)
        gc.collect()
        torch.cuda.empty_cache()  # does nothing without a GPU
        try:
            with trainer.precision_plugin.forward_context(), torch.enable_grad():
                loss: Any = module.training_step(part, 0)
            (loss["loss"] if isinstance(loss, dict) else loss).backward()
        except torch.OutOfMemoryError:
            return False
        finally:
            module.zero_grad(set_to_none=True)
        return True
