"""Whose business SIGTERM is while a Trainer runs."""

from __future__ import annotations

import signal
import threading
from typing import Any

import lightning as L


class SigtermAsBefore(L.Callback):
    """Leaves SIGTERM to whoever it was left to before the Trainer.

    Lightning's handler broadcasts to the other processes first, in the middle of whatever they
    exchange at that moment: then each waits for the other, for ever.
    """

    _before: Any = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Look who that is; Lightning comes after this."""
        self._before = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the handler back."""
        self._put_back()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the handler back."""
        self._put_back()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the handler back."""
        self._put_back()

    def _put_back(self) -> None:
        # None: a handler that is not Python's. Other threads may set none.
        if self._before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._before)
