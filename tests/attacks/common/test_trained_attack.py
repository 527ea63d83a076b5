"""The base of attacks that learn along, on one that learns to shift an image by a constant."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from fst_lightning import BackdoorDataModule, BackdoorModule
from fst_lightning.attacks import TrainedAttack
from tests import tiny


class Shift(TrainedAttack):
    def __init__(self) -> None:
        super().__init__(poison_ratio=0.5)
        self.shift = nn.Parameter(torch.zeros(1, 3, 1, 1))

    def trigger(self, images: Tensor) -> Tensor:
        return images + 0.1 * torch.tanh(self.shift)

    def own_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([self.shift], lr=0.1)


def fit(folder: Path, attack: Shift, epochs: int, resume: Path | None = None) -> BackdoorModule:
    source = tiny.source(num_train=40)
    data = BackdoorDataModule(source, attack, batch_size=8)
    module = BackdoorModule(tiny.conv_net(), attack, seed=3)
    keep = ModelCheckpoint(folder, filename="last", save_on_train_epoch_end=True)
    trainer = tiny.trainer(
        folder, epochs, limit_val_batches=0, callbacks=[keep], enable_checkpointing=True
    )
    trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    return module


def test_its_optimizer_takes_a_step_after_each_of_the_classifiers(tmp_path: Path) -> None:
    attack = Shift()
    fit(tmp_path, attack, 2)
    state = attack.get_extra_state()["state"][0]
    assert int(state["step"]) == 2 * 5
    assert bool((attack.shift != 0).all())
    assert attack.shift.grad is None


def test_the_classifier_does_not_train_the_attack_and_its_clipping_leaves_it_out() -> None:
    module = BackdoorModule(tiny.conv_net(), Shift())
    trained = {id(p) for p in module.trained_parameters()}
    assert not trained & {id(p) for p in module.attack.parameters()}


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    whole, first, second = Shift(), Shift(), Shift()
    expected = fit(tmp_path / "whole", whole, 3)
    fit(tmp_path / "part", first, 1)
    resumed = fit(tmp_path / "part2", second, 3, tmp_path / "part" / "last.ckpt")
    assert torch.equal(second.shift, whole.shift)
    assert not torch.equal(first.shift, whole.shift)
    for name, value in expected.net.state_dict().items():
        assert torch.equal(value, resumed.net.state_dict()[name])


class Half(L.Callback):
    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        trainer.strategy.precision_plugin.precision = "16-mixed"


def test_refuses_scaled_gradients(tmp_path: Path) -> None:
    attack = Shift()
    data = BackdoorDataModule(tiny.source(), attack)
    trainer = tiny.trainer(tmp_path, callbacks=[Half()])
    with pytest.raises(MisconfigurationException, match="Shift, whose trigger is learned"):
        trainer.fit(BackdoorModule(tiny.conv_net(), attack), data)
