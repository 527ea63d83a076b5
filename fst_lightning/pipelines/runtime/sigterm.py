"""Restores the SIGTERM handler that was installed before the Trainer."""

from __future__ import annotations

import signal
import threading
from typing import Any

import lightning as L


class SigtermAsBefore(L.Callback):
    """Restores the SIGTERM handler that was installed before the Trainer.

    Lightning's handler broadcasts to the other processes. If they are exchanging something else at
    that moment, all of them wait for each other without end.
    """

    _before: Any = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Remember the handler; Lightning installs its own after this."""
        self._before = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore the handler."""
        self._restore()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore the handler."""
        self._restore()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore the handler."""
        self._restore()

    def _restore(self) -> None:
        # None stands for a handler outside Python. Only the main thread may set one.
        if self._before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._before)
