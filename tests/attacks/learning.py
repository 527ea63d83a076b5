"""Short training runs for the attacks that learn along with the classifier."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from fst_lightning import BackdoorDataModule, BackdoorModule
from fst_lightning.attacks import Attack
from tests import tiny


def fit(
    folder: Path, attack: Attack, epochs: int, resume: Path | None = None, **options: Any
) -> BackdoorModule:
    """Train on 40 random images of 8 x 8 pixels; the last epoch is kept in ``last.ckpt``."""
    data = BackdoorDataModule(tiny.source(num_train=40), attack, batch_size=8)
    module = BackdoorModule(tiny.conv_net(), attack, seed=3)
    keep = ModelCheckpoint(folder, filename="last", save_on_train_epoch_end=True)
    trainer = tiny.trainer(
        folder,
        epochs,
        limit_val_batches=0,
        callbacks=[keep],
        enable_checkpointing=True,
        **options,
    )
    trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    return module


def tensors(state: Any) -> list[Tensor]:
    """All tensors of a state, also those in the state of an optimizer."""
    if isinstance(state, Tensor):
        return [state]
    values = state.values() if isinstance(state, dict) else state
    if not isinstance(state, dict | list | tuple):
        return []
    return [tensor for value in values for tensor in tensors(value)]


def resumes_exactly(folder: Path, make: Callable[[], Attack], epochs: int, stop: int) -> None:
    """Compare a run of ``epochs`` epochs with one that stops after some and goes on in new objects.

    Both know of all epochs from the start: the first part of the second one is stopped early.
    """
    expected = fit(folder / "whole", make(), epochs)
    part = fit(folder / "part", make(), epochs, max_steps=stop * 5)
    resumed = fit(folder / "part", make(), epochs, folder / "part" / "last.ckpt")
    whole, again = tensors(expected.state_dict()), tensors(resumed.state_dict())
    assert len(whole) == len(again)
    assert all(torch.equal(one, other) for one, other in zip(whole, again, strict=True))
    early = zip(part.net.parameters(), resumed.net.parameters(), strict=True)
    assert all(not torch.equal(one, other) for one, other in early)
