"""A training that has diverged stops, and says where."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from fst_lightning import BackdoorDataModule, BackdoorModule
from fst_lightning.attacks import NoAttack
from fst_lightning.callbacks import FiniteLoss
from tests import tiny

BATCHES = 4  # of 16 rows, 60 in all


class Spoilt(BackdoorModule):
    """Its loss is spoilt in the given steps, counted from 1; with it, its weights or not."""

    def __init__(self, steps: range, by: float = float("nan"), weights: bool = True) -> None:
        schedule = torch.optim.lr_scheduler.StepLR
        super().__init__(
            tiny.conv_net(),
            NoAttack(),
            lambda p: torch.optim.SGD(p, lr=0.1),
            lambda optimizer: schedule(optimizer, 1, gamma=0.5),
            seed=0,
        )
        self.steps, self.by, self.weights = steps, by, weights

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if self.trainer.global_step + 1 not in self.steps:
            return loss
        return loss * self.by if self.weights else loss.detach() * self.by + 0 * loss


def fit(module: L.LightningModule, folder: Path, epochs: int = 4, **options: Any) -> L.Trainer:
    saved = ModelCheckpoint(folder, "last", save_on_train_epoch_end=True)
    trainer = tiny.trainer(
        folder,
        epochs,
        callbacks=[saved, FiniteLoss("Do something.")],
        enable_checkpointing=True,
        **options,
    )
    trainer.fit(module, BackdoorDataModule(tiny.source(), batch_size=16))
    return trainer


@pytest.mark.parametrize("by", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("first", [5, 7, 8])
def test_the_step_its_rate_and_the_last_good_checkpoint_are_named(
    first: int, by: float, tmp_path: Path
) -> None:
    with pytest.raises(FloatingPointError) as caught:
        fit(Spoilt(range(first, 100), by), tmp_path)
    said = str(caught.value)
    assert (
        f"the loss has been {by} since step {first} (epoch 2), at a learning rate of 0.05" in said
    )
    assert f"The last good checkpoint is {tmp_path / 'last.ckpt'}." in said
    assert said.endswith("Do something.")
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert state["global_step"] == BATCHES
    assert all(v.isfinite().all() for v in state["state_dict"].values() if v.is_floating_point())


def test_before_the_first_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(
        FloatingPointError, match=r"since step 2 \(epoch 1\).* No checkpoint is kept"
    ):
        fit(Spoilt(range(2, 100)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_weights_that_the_last_step_of_an_epoch_spoilt(tmp_path: Path) -> None:
    """The loss before it was fine, and the checkpoint after it would not be."""

    class Late(Spoilt):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            if self.trainer.global_step == 2 * BATCHES:
                with torch.no_grad():
                    next(self.net.parameters())[0] = float("nan")

    with pytest.raises(FloatingPointError, match="the weights have been nan since step 8"):
        fit(Late(range(0)), tmp_path)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == BATCHES


def test_a_loss_that_recovers_stops_nothing(tmp_path: Path) -> None:
    """As in fp16, where the step is left out that has overflown."""

    class Recovers(Spoilt):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            for parameter in self.net.parameters():
                parameter.grad = torch.zeros_like(parameter)

    assert fit(Recovers(range(3, 5)), tmp_path, 2).current_epoch == 2
    with pytest.raises(FloatingPointError, match="since step 5 "):
        fit(Recovers(range(5, 9)), tmp_path, 2)  # a whole epoch


def test_a_long_epoch_is_looked_at_before_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fst_lightning.callbacks.finite_loss._MOST_KEPT", 2)
    module = Spoilt(range(1, 100))
    with pytest.raises(FloatingPointError, match="since step 1 "):
        fit(module, tmp_path)
    assert module.trainer.global_step == 2


def test_no_step_waits_for_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever reads a number off a tensor would: counted for a step and for an epoch."""
    read: list[str] = []

    def noted(name: str, own: Any) -> Any:
        def call(self: Tensor, *args: Any) -> Any:
            read.append(name)
            return own(self, *args)

        return call

    for name in ("item", "tolist", "__bool__", "__float__", "cpu"):
        monkeypatch.setattr(Tensor, name, noted(name, getattr(Tensor, name)))
    callback = FiniteLoss()
    module = Spoilt(range(0))
    trainer = tiny.trainer(tmp_path, 1)
    trainer.strategy.connect(module)
    trainer.strategy.optimizers = [torch.optim.SGD(module.parameters(), lr=0.1)]
    callback.on_train_epoch_start(trainer, module)
    read.clear()
    for index in range(10):
        callback.on_train_batch_start(trainer, module, None, index)
        callback.on_train_batch_end(trainer, module, {"loss": torch.ones(())}, None, index)
    assert read == []
    callback.on_train_epoch_end(trainer, module)
    assert read.count("tolist") == 1


@pytest.mark.parametrize("outputs", [None, {"other": 1}, torch.tensor(1.0)])
def test_manual_optimization_may_return_anything(outputs: Any, tmp_path: Path) -> None:
    callback, module = FiniteLoss(), Spoilt(range(0))
    trainer = tiny.trainer(tmp_path, 1)
    trainer.strategy.connect(module)
    callback.on_train_batch_start(trainer, module, None, 0)
    callback.on_train_batch_end(trainer, module, outputs, None, 0)
    callback.on_train_epoch_end(trainer, module)
