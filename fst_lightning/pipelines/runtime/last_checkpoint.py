"""Writes the checkpoint from which an interrupted run resumes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from fst_lightning.checkpoints.write import whole_file


class LastCheckpoint(ModelCheckpoint):
    """Keeps the last epoch as ``last.ckpt``, and takes no path from a checkpoint.

    Lightning's own callback reads from a checkpoint which file to remove after it has written the
    next one, but a checkpoint may come from anybody. (With ``save_top_k=0`` and ``save_last=True``
    it would write ``last.ckpt`` only at the end of the training.)

    Args:
        work: The folder of ``last.ckpt``.
    """

    def __init__(self, work: Path) -> None:
        super().__init__(
            work,
            filename="last",
            save_top_k=1,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return nothing, because the folder is known without it."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Ignore the state of a checkpoint."""


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside the previous one, and then replaces that in one step.

    Lightning writes into the system's folder for temporary files and copies from there. If that is
    on another disk and the process is killed while it copies, half of the new checkpoint is left
    and nothing of the previous one.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write the file, and make its folder if it does not exist."""
        # In memory first, because torch hides the system's error if a file cannot be written.
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        with whole_file(Path(path)) as temporary:
            temporary.write_bytes(buffer.getbuffer())
