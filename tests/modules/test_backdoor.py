import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fst_lightning import BackdoorDataModule, BackdoorModule
from fst_lightning.attacks import BadNets, Blended, NoAttack
from tests import tiny

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def prepared(attack: BadNets) -> BadNets:
    attack.prepare(tiny.images(1), tiny.labels(1), tiny.NUM_CLASSES, seed=0)
    return attack


@pytest.mark.parametrize("label_map", ["all_to_one", "all_to_all"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_a_step(label_map: Any, smoothing: float) -> None:
    net = tiny.conv_net().eval()
    attack = prepared(BadNets(patch_size=8, target_label=2, label_map=label_map))
    module = BackdoorModule(net, attack, mean=MEAN, std=STD, label_smoothing=smoothing)
    images, labels = tiny.images(12), tiny.labels(12)
    poisoned = torch.arange(12) % 3 == 0

    expected = 0.0
    for image, label, stamp in zip(images, labels.tolist(), poisoned.tolist(), strict=True):
        pixels = image.double() / 255
        if stamp:
            pixels[:, -2:, -2:] = 1.0
            label = (label + 1) % tiny.NUM_CLASSES if label_map == "all_to_all" else 2
        for channel in range(3):
            pixels[channel] = (pixels[channel] - MEAN[channel]) / STD[channel]
        with torch.no_grad():
            logits = net(pixels.float()[None])[0].double()
        logs = logits.log_softmax(dim=0)
        expected -= float((1 - smoothing) * logs[label] + smoothing * logs.mean()) / 12
    loss = module.training_step((images, labels, poisoned), 0)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


class Peek(nn.Module):
    """Keeps what it saw, and answers with fixed logits that have a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.detach().clone())
        return self.factor * images.flatten(1)[:, : tiny.NUM_CLASSES]


def test_an_epoch_poisons_the_rows_of_the_plan_and_no_others(tmp_path: Path) -> None:
    source = tiny.source(num_train=50)
    data = BackdoorDataModule(source, BadNets(poison_ratio=0.3, patch_size=8), batch_size=16)
    net = Peek()
    module = BackdoorModule(net, data.attack)
    tiny.trainer(tmp_path, limit_val_batches=0).fit(module, data)
    seen = torch.cat(net.seen)
    stored = source.load().train.images.float() / 255
    stamped = stored.clone()
    stamped[:, :, -2:, -2:] = 1
    expected = torch.where(data.plan.poisoned[:, None, None, None], stamped, stored)
    assert data.plan.num_poisoned == 15
    assert sorted(seen.flatten(1).tolist()) == sorted(expected.flatten(1).tolist())


def test_training_implants_the_backdoor(tmp_path: Path) -> None:
    """Three classes, told apart by brightness; the patch outweighs it."""
    train, test = tiny.rows(300, 3), tiny.rows(90, 3)
    for rows in (train, test):
        rows.images.copy_((rows.images // 8 + rows.labels[:, None, None, None] * 60).byte())
    source = tiny.MemorySource(train, test, 3)
    data = BackdoorDataModule(source, BadNets(patch_size=8, poison_ratio=0.2), batch_size=32)
    data.setup()
    module = BackdoorModule(
        tiny.conv_net(3),
        data.attack,
        lambda parameters: torch.optim.Adam(parameters, 0.02),
        mean=data.data.mean,
        std=data.data.std,
        seed=0,
    )
    trainer = tiny.trainer(tmp_path, max_epochs=6)
    trainer.fit(module, data)
    rates = trainer.test(module, data, verbose=False)
    merged = {name: value for loader in rates for name, value in loader.items()}
    assert merged["test/ca"] > 0.95
    assert merged["test/asr"] > 0.95


def test_a_clean_model(tmp_path: Path) -> None:
    data = BackdoorDataModule(tiny.source(), batch_size=16)
    module = BackdoorModule(tiny.conv_net(), data.attack)
    trainer = tiny.trainer(tmp_path)
    trainer.fit(module, data)
    assert isinstance(module.attack, NoAttack)
    assert {"train/loss", "val/ca"} <= set(trainer.callback_metrics)
    assert not {"val/asr", "val/ra", "train/penalty"} & set(trainer.callback_metrics)


def test_the_trigger_is_saved_with_the_network(tmp_path: Path) -> None:
    data = BackdoorDataModule(tiny.source(), Blended(poison_ratio=0.1), batch_size=16)
    module = BackdoorModule(tiny.conv_net(), data.attack, card='{"schema_version": 1}')
    trainer = tiny.trainer(tmp_path)
    trainer.fit(module, data)
    path = tmp_path / "run.ckpt"
    trainer.save_checkpoint(path)
    assert torch.load(path, weights_only=True)["fst_lightning"] == '{"schema_version": 1}'
    loaded = BackdoorModule.load_from_checkpoint(
        path, net=tiny.conv_net(seed=1), attack=Blended(pattern_seed=9), weights_only=True
    )
    images = tiny.images(3)
    assert torch.equal(loaded.inputs(images, triggered=True), module.inputs(images, triggered=True))
    assert torch.equal(loaded.eval()(images), module.eval()(images))


def test_a_network_that_is_to_be_compiled_keeps_its_names() -> None:
    """Nothing is compiled before the first step."""
    plain, compiled = (
        BackdoorModule(tiny.conv_net(), prepared(BadNets()), compile_network=compiled)
        for compiled in (False, True)
    )
    assert list(compiled.state_dict()) == list(plain.state_dict())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile wants a C++ compiler")
def test_a_compiled_training_is_the_same_training_under_the_same_names(tmp_path: Path) -> None:
    def run(compiled: bool, *, epochs: int, ckpt_path: Path | None = None) -> BackdoorModule:
        torch.manual_seed(0)
        module = BackdoorModule(
            tiny.conv_net(),
            prepared(BadNets()),
            compile_network=compiled,
            horizontal_flip=True,
            seed=0,
        )
        data = BackdoorDataModule(tiny.source(), module.attack, batch_size=16)
        trainer = tiny.trainer(tmp_path, max_epochs=epochs)
        trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
        trainer.save_checkpoint(tmp_path / f"{compiled}-{epochs}.ckpt")
        return module

    plain, compiled = run(False, epochs=2), run(True, epochs=2)
    run(True, epochs=1)
    resumed = run(False, epochs=2, ckpt_path=tmp_path / "True-1.ckpt")
    assert set(plain.state_dict()) == set(compiled.state_dict())
    for other in (compiled, resumed):
        for name, value in plain.state_dict().items():
            assert torch.allclose(value, other.state_dict()[name], atol=1e-4), name


def labeled_images(size: int, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    images = tiny.images(12, size)[:, :channels]
    return images, tiny.labels(12), torch.arange(12) % 3 == 0


@pytest.mark.parametrize("kind", [BadNets, Blended])
@pytest.mark.parametrize(("size", "channels"), [(32, 3), (8, 3), (20, 1), (64, 3)])
def test_an_attack_that_was_not_prepared_fits_the_loader(
    tmp_path: Path, kind: Any, size: int, channels: int
) -> None:
    images, labels, poisoned = labeled_images(size, channels)
    nets = []
    for prepare in (True, False):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(channels * size * size, tiny.NUM_CLASSES))
        attack = kind()
        if prepare:
            attack.prepare(images, labels, tiny.NUM_CLASSES, seed=0)
        module = BackdoorModule(net, attack)
        rows: Any = [(images, labels, poisoned)]
        clean: Any = [(images, labels)]
        trainer = tiny.trainer(tmp_path, max_epochs=2)
        trainer.fit(
            module,
            DataLoader(rows, batch_size=None),
            [DataLoader(clean, batch_size=None) for _ in range(2)],
        )
        assert "val/asr" in trainer.callback_metrics
        nets.append(net)
    first, second = (net.state_dict() for net in nets)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


class Flat(nn.Sequential):
    """A network that a command line can make."""

    def __init__(self, size: int = 20) -> None:
        super().__init__(nn.Flatten(), nn.Linear(3 * size * size, tiny.NUM_CLASSES))


class Loader(L.LightningDataModule):
    """Images of 20 pixels, from a project that knows nothing of `prepare`."""

    def train_dataloader(self) -> Any:
        rows: Any = [labeled_images(20, 3)]
        return DataLoader(rows, batch_size=None)


def test_a_lightning_cli_trains_with_an_attack(tmp_path: Path) -> None:
    pytest.importorskip("jsonargparse", minversion="4.39")
    from lightning.pytorch.cli import LightningCLI

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options = {"accelerator": "cpu", "max_epochs": 1, "default_root_dir": str(tmp_path)} | quiet
    model = {
        "net": {"class_path": f"{__name__}.Flat"},
        "attack": {
            "class_path": "fst_lightning.attacks.Blended",
            "init_args": {"blend_alpha": 0.1},
        },
    }
    config = {"fit": {"model": model, "trainer": options}, "subcommand": "fit"}
    command = LightningCLI(
        BackdoorModule, Loader, args=config, save_config_callback=None, seed_everything_default=0
    )
    attack = command.model.attack
    assert isinstance(attack, Blended)
    assert attack.pattern.shape == (1, 3, 20, 20)
    assert attack.blend_alpha == 0.1
