"""Progress of a run: a bar on a terminal, lines of text elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn


class PlainProgress(ProgressBar):
    """A line of text every few seconds, for logs and pipes: epoch, loss, CA, ASR, time left.

    Args:
        title: Name of the task, for example ``train``.
        min_seconds: Shortest time between two lines, except for the last one.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[PlainProgress("tune")], logger=False)
    """

    def __init__(self, title: str = "train", min_seconds: float = 2.0) -> None:
        super().__init__()
        self.title = title
        self.min_seconds = min_seconds
        self._enabled = True
        self._started = self._shown = 0.0
        self._first_epoch = self._epochs_done = 0

    def disable(self) -> None:
        """Show nothing; Lightning calls this on all processes but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show something again."""
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._started = self._shown = time.monotonic()
        self._first_epoch = self._epochs_done = trainer.current_epoch
        if self._enabled:
            self.open(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the previous epoch, which the module has now logged completely."""
        done = trainer.current_epoch
        now = time.monotonic()
        due = done > self._first_epoch and now - self._shown >= self.min_seconds
        self._epochs_done = done
        if self._enabled and due:
            self._shown = now
            self.show(trainer, done)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Advance by one batch."""
        if self._enabled:
            self.advance()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the last epoch."""
        if self._enabled:
            # Lightning has already counted a finished last epoch.
            self.show(trainer, max(self._epochs_done, trainer.current_epoch))
            self.close()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Restore the terminal."""
        self.close()

    def words(self, trainer: L.Trainer, done: int) -> str:
        """The figures of the last epoch, and the time left."""
        # None or -1 for a run that is limited by steps or time.
        last = max(trainer.max_epochs or 0, 0)
        elapsed = time.monotonic() - self._started
        left = elapsed / max(1, done - self._first_epoch) * max(0, last - done)
        metrics = trainer.callback_metrics
        figures = {
            "loss": metrics.get("train/loss"),
            "CA": metrics.get("val/ca"),
            "ASR": metrics.get("val/asr"),
        }
        shown = [f"{name} {float(v):.3f}" for name, v in figures.items() if v is not None]
        if not last:
            return "  ".join([f"epoch {done}", *shown])
        return "  ".join([f"epoch {done}/{last}", *shown, f"{left:.0f} s left"])

    def open(self, trainer: L.Trainer) -> None:
        """Begin to show a fit."""

    def advance(self) -> None:
        """Take note of a batch."""

    def show(self, trainer: L.Trainer, done: int) -> None:
        """Show an epoch's figures."""
        print(f"{self.title}: {self.words(trainer, done)}", flush=True)

    def close(self) -> None:
        """End."""


class LiveProgress(PlainProgress):
    """One bar over all epochs of a fit, for terminals.

    Args:
        title: Name of the task, for example ``train``.
    """

    def __init__(self, title: str = "train") -> None:
        super().__init__(title, min_seconds=0.0)
        self._bar: Progress | None = None

    def open(self, trainer: L.Trainer) -> None:
        """Draw the bar."""
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TextColumn("{task.fields[words]}"),
            console=Console(),
        )
        batches, epochs = trainer.num_training_batches, trainer.max_epochs or 0
        total = batches * epochs if epochs > 0 and batches != float("inf") else None
        done = int(batches * trainer.current_epoch) if total else 0
        self._bar.add_task(self.title, total=total, completed=done, words="")
        self._bar.start()

    def advance(self) -> None:
        """Advance the bar; it is redrawn ten times per second at most."""
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0])

    def show(self, trainer: L.Trainer, done: int) -> None:
        """Show the epoch's figures after the bar."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], words=self.words(trainer, done))

    def close(self) -> None:
        """Stop the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


@contextmanager
def stage(title: str, words: str) -> Iterator[None]:
    """Show that a task without epochs is running: a spinner on a terminal, otherwise two lines.

    Args:
        title: Name of the task, for example ``purify``.
        words: Description of the stage.

    Example:
        >>> with stage("purify", "the defense looks for a trigger"):
        ...     pass  # doctest: +ELLIPSIS
        purify: the defense looks for a trigger ...
        purify: the defense looks for a trigger: ... s
    """
    started = time.monotonic()
    if sys.stdout.isatty():
        with Console().status(f"{title}: {words}"):
            yield
    else:
        print(f"{title}: {words} ...", flush=True)
        yield
    print(f"{title}: {words}: {time.monotonic() - started:.1f} s", flush=True)


def progress_callback(title: str) -> PlainProgress:
    """A live bar on a terminal, plain lines elsewhere."""
    return LiveProgress(title) if sys.stdout.isatty() else PlainProgress(title)
