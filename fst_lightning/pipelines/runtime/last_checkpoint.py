"""The checkpoint that an interrupted run goes on from: the last epoch, whole or not at all."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from fst_lightning.checkpoints.write import whole_file


class LastCheckpoint(ModelCheckpoint):
    """Keeps the last epoch as ``last.ckpt``, and believes no checkpoint about where that lies.

    Lightning's own takes over from a checkpoint which file to remove after the next one is
    written: a name from a file that anybody may have made. (With ``save_top_k=0`` and
    ``save_last=True`` it writes ``last.ckpt`` at the end of the training alone.)

    Args:
        work: The folder.
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
        """Nothing: the folder is known without it."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take nothing over."""


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside the one before, and only then puts it in its place.

    Lightning's own goes through the system's folder for temporary files: where that is on another
    disk, a process that is killed while the file is copied leaves half of it, and nothing of the
    one before.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write the file; its folder is made where there is none."""
        # In memory first: torch hides what the system says where a file can't be written.
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        with whole_file(Path(path)) as temporary:
            temporary.write_bytes(buffer.getbuffer())
