"""What a person sees of a run that is under way."""

from __future__ import annotations

import sys
import time

import lightning as L
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar


class PlainProgress(ProgressBar):
    """One line of text every few epochs, for logs and pipes.

    Args:
        title: what is being done, e.g. ``train``.
        min_seconds: at least so long between two lines, but for the last.
    """

    def __init__(self, title: str = "train", min_seconds: float = 2.0) -> None:
        super().__init__()
        self.title = title
        self.min_seconds = min_seconds
        self._enabled = True
        self._started = self._printed = 0.0
        self._first_epoch = 0

    def disable(self) -> None:
        """Print nothing; Lightning calls this on all processes but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Print again."""
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._started = self._printed = time.monotonic()
        self._first_epoch = trainer.current_epoch

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the epoch's figures and the time left."""
        done, last = trainer.current_epoch + 1, trainer.max_epochs or 0
        now = time.monotonic()
        if not self._enabled or (done != last and now - self._printed < self.min_seconds):
            return
        self._printed = now
        left = (now - self._started) / (done - self._first_epoch) * max(0, last - done)
        figures = {
            "loss": trainer.callback_metrics.get("train/loss"),
            "CA": trainer.callback_metrics.get("val/ca"),
            "ASR": trainer.callback_metrics.get("val/asr"),
        }
        words = [
            f"{name} {float(value):.3f}" for name, value in figures.items() if value is not None
        ]
        print(f"{self.title}: epoch {done}/{last}", *words, f"{left:.0f} s left", sep="  ")


def progress_callback(title: str) -> L.Callback:
    """A live bar on a terminal, plain lines elsewhere."""
    return RichProgressBar(leave=True) if sys.stdout.isatty() else PlainProgress(title)
