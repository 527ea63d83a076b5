"""A run that was interrupted and goes on ends with the same weights, bit for bit."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from fst_lightning import BackdoorDataModule, BackdoorModule, PurificationModule
from fst_lightning.attacks import Attack, BadNets, Blended, NoAttack
from fst_lightning.defenses import FST, Defense, FeatureExtractorTuning, LinearProbing
from fst_lightning.modules import ClassifierModule
from tests import tiny

EPOCHS = 4
Parts = tuple[ClassifierModule, BackdoorDataModule]


class Interrupt(L.Callback):
    """Fails in the middle of an epoch, as a power cut would."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.current_epoch == self.epoch and batch_idx == 1:
            raise RuntimeError("power cut")


def arguments(seed: int) -> dict[str, Any]:
    adam = functools.partial(torch.optim.Adam, lr=0.01)
    sgd = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9)
    return {
        "optimizer": adam if seed % 2 else sgd,
        "scheduler": functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=EPOCHS),
        "mean": (0.5,) * 3,
        "std": (0.25,) * 3,
        "crop_padding": 2,
        "horizontal_flip": True,
        "seed": seed,
        "card": "{}",
    }


def backdoor(attack: Attack, net_seed: int, num_workers: int = 0) -> Parts:
    data = BackdoorDataModule(
        tiny.source(), attack, batch_size=16, eval_batch_size=7, seed=3, num_workers=num_workers
    )
    net = tiny.conv_net(dropout=0.2, seed=net_seed)
    return BackdoorModule(net, data.attack, **arguments(3)), data


def purification(defense: Defense, net_seed: int) -> Parts:
    data = BackdoorDataModule(
        tiny.source(),
        BadNets(poison_ratio=0.1),
        purpose="purify",
        batch_size=16,
        clean_ratio=0.9,
        seed=4,
    )
    net = tiny.conv_net(dropout=0.2, seed=net_seed)
    return PurificationModule(net, defense, attack=data.attack, **arguments(4)), data


def weights(module: ClassifierModule) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def check(make: Callable[[int], Parts], folder: Path, epoch: int, **options: Any) -> None:
    module, data = make(0)
    tiny.trainer(folder, EPOCHS, **options).fit(module, data)
    expected = weights(module)

    module, data = make(0)
    checkpoints = ModelCheckpoint(
        folder, "last", enable_version_counter=False, save_on_train_epoch_end=True
    )
    trainer = tiny.trainer(
        folder,
        EPOCHS,
        callbacks=[Interrupt(epoch), checkpoints],
        enable_checkpointing=True,
        **options,
    )
    with pytest.raises(RuntimeError, match="power cut"):
        trainer.fit(module, data)
    torch.manual_seed(12345)  # another process has another state of the global generator
    torch.rand(7)

    # Other initial weights: everything that counts has to come from the checkpoint.
    module, data = make(9)
    trainer = tiny.trainer(folder, EPOCHS, **options)
    trainer.fit(module, data, ckpt_path=folder / "last.ckpt", weights_only=True)
    resumed = weights(module)
    assert trainer.current_epoch == EPOCHS
    assert resumed.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(resumed[name], value), name


@pytest.mark.parametrize("epoch", [1, 3])
@pytest.mark.parametrize("attack", [BadNets, Blended])
def test_training_a_backdoored_model(tmp_path: Path, attack: type[Attack], epoch: int) -> None:
    check(lambda seed: backdoor(attack(poison_ratio=0.2), seed), tmp_path, epoch)


def test_training_a_clean_model(tmp_path: Path) -> None:
    check(lambda seed: backdoor(NoAttack(), seed), tmp_path, 2)


def test_training_with_a_worker(tmp_path: Path) -> None:
    check(lambda seed: backdoor(BadNets(poison_ratio=0.2), seed, num_workers=1), tmp_path, 2)


@pytest.mark.parametrize("epoch", [1, 3])
@pytest.mark.parametrize("reinit", ["uniform", "orthogonal"])
def test_purifying_with_fst(tmp_path: Path, reinit: Any, epoch: int) -> None:
    check(lambda seed: purification(FST(0.2, reinit), seed), tmp_path, epoch)


@pytest.mark.parametrize("kind", [LinearProbing, FeatureExtractorTuning])
def test_purifying_with_frozen_parts(tmp_path: Path, kind: type[Any]) -> None:
    check(lambda seed: purification(kind(), seed), tmp_path, 2)


def test_with_accumulation_and_mid_epoch_validation(tmp_path: Path) -> None:
    check(
        lambda seed: purification(FST(0.2), seed),
        tmp_path,
        2,
        accumulate_grad_batches=3,
        val_check_interval=2,
        num_sanity_val_steps=2,
    )


def test_the_checkpoint_keeps_the_head_that_came_in(tmp_path: Path) -> None:
    module, data = purification(FST(0.2), 0)
    came_in = module.net.get_parameter("head.weight").detach().clone()
    trainer = tiny.trainer(tmp_path, EPOCHS)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    state = torch.load(tmp_path / "run.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(state["defense.original_weight"], came_in)


def test_a_checkpoint_is_tested_in_a_new_process(tmp_path: Path) -> None:
    module, data = purification(FST(0.2), 0)
    trainer = tiny.trainer(tmp_path, 1)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    expected = trainer.test(module, data, verbose=False)
    fresh, data = purification(FST(0.2), 9)
    found = tiny.trainer(tmp_path).test(
        fresh, data, ckpt_path=tmp_path / "run.ckpt", verbose=False, weights_only=True
    )
    assert found == expected


def test_every_epoch_has_random_numbers_of_its_own(tmp_path: Path) -> None:
    states: list[Tensor] = []

    class Record(L.Callback):
        def on_train_batch_start(
            self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
        ) -> None:
            if batch_idx == 0:
                states.append(torch.get_rng_state())

    for seed in (1, 1, 2):
        module = BackdoorModule(tiny.conv_net(), NoAttack(), seed=seed)
        data = BackdoorDataModule(tiny.source(), batch_size=16)
        tiny.trainer(tmp_path, 3, callbacks=[Record()]).fit(module, data)
    first, same, other = states[:3], states[3:6], states[6:]
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    distinct = {tuple(state.tolist()) for state in first + other}
    assert len(distinct) == 6
