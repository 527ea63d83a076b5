"""FSTCallback in five projects as strangers write them, compared with a plain loop.

Each either gives the weights of the published algorithm, or is refused with the reason.
"""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.tuner.tuning import Tuner
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from fst_lightning import FSTCallback
from tests.callbacks.plain_loop import plain_fst
from tests.callbacks.projects import largest_difference, make_tensors

ALPHA, SEED, EPOCHS = 0.2, 3, 2


def make_cnn(seed: int = 0) -> nn.Module:
    """What a first tutorial builds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32, 16),
            nn.ReLU(),
            nn.Linear(16, 4),
        )


def clean_loader() -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(*make_tensors(32)), batch_size=8)


def sgd(parameters: Any) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4)


def expected(make_optimizer: Any = sgd) -> nn.Module:
    batches: Any = list(clean_loader())
    return plain_fst(
        make_cnn(), "7", batches, make_optimizer, alpha=ALPHA, seed=SEED, epochs=EPOCHS
    )


def trainer(*callbacks: L.Callback, folder: Path, **options: Any) -> L.Trainer:
    return L.Trainer(
        max_epochs=EPOCHS,
        callbacks=list(callbacks),
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **({"enable_checkpointing": False} | options),
    )


class LitClassifier(L.LightningModule):
    def __init__(self, lr: float = 0.05) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr
        self.model = make_cnn()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = functional.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", functional.cross_entropy(self(x), y))

    def configure_optimizers(self) -> Any:
        return sgd(self.parameters())


def test_plain_script(tmp_path: Path) -> None:
    module = LitClassifier()
    callback = FSTCallback(ALPHA, "uniform", seed=SEED)
    trainer(callback, folder=tmp_path).fit(module, clean_loader(), clean_loader())
    assert largest_difference(module.model, expected()) < 1e-6


class CleanData(L.LightningDataModule):
    def train_dataloader(self) -> Any:
        return clean_loader()


def test_lightning_cli(tmp_path: Path) -> None:
    pytest.importorskip("jsonargparse")
    from lightning.pytorch.cli import LightningCLI

    arguments = [
        "fit",
        f"--trainer.default_root_dir={tmp_path}",
        f"--trainer.max_epochs={EPOCHS}",
        "--trainer.accelerator=cpu",
        "--trainer.logger=false",
        "--trainer.enable_checkpointing=false",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        "--trainer.callbacks+=fst_lightning.FSTCallback",
        f"--trainer.callbacks.alpha={ALPHA}",
        "--trainer.callbacks.reinit=uniform",
        f"--trainer.callbacks.seed={SEED}",
    ]
    cli = LightningCLI(LitClassifier, CleanData, args=arguments, save_config_callback=None)
    assert largest_difference(cli.model.model, expected()) < 1e-6


def test_tuner_average_and_checkpoint(tmp_path: Path) -> None:
    """The average is that of the plain loop's weights, its head put on the sphere."""
    module = LitClassifier()
    saver = ModelCheckpoint(tmp_path, save_last=True)
    average = EMAWeightAveraging(decay=0.5)
    callback = FSTCallback(ALPHA, "uniform", seed=SEED)
    tuner = trainer(callback, folder=tmp_path)
    Tuner(tuner).lr_find(module, clean_loader(), num_training=4, update_attr=False)
    fit = trainer(callback, average, saver, folder=tmp_path, enable_checkpointing=True)
    fit.fit(module, clean_loader(), clean_loader())

    kept: list[dict[str, Tensor]] = []

    class Keeps(torch.optim.SGD):
        """Remembers the weights before every step."""

        def __init__(self, parameters: Any) -> None:
            self.watched = list(parameters)
            super().__init__(self.watched, lr=0.05, momentum=0.9, weight_decay=5e-4)

        def step(self, *arguments: Any, **keywords: Any) -> Any:
            kept.append({str(i): p.detach().clone() for i, p in enumerate(self.watched)})
            return super().step(*arguments, **keywords)

    final = expected(Keeps)
    kept.append({str(i): p.detach().clone() for i, p in enumerate(final.parameters())})
    # Lightning copies the weights after the first step and averages from the second one on.
    mean = kept[1]
    for weights in kept[2:]:
        mean = {k: 0.5 * mean[k] + 0.5 * weights[k] for k in mean}
    head = make_cnn().get_parameter("7.weight").detach()
    mean["6"] *= head.norm() / mean["6"].norm()
    for number, parameter in enumerate(module.model.parameters()):
        torch.testing.assert_close(parameter.detach(), mean[str(number)], atol=1e-6, rtol=0)
    assert (tmp_path / "last.ckpt").is_file()


class TwoOptimizers(LitClassifier):
    """An auxiliary layer learns to turn pictures; each part has its own optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.rotation = nn.Conv2d(3, 4, 4)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        optimizers: Any = self.optimizers()
        classifier, auxiliary = optimizers
        turned = torch.rot90(x, 1, (2, 3))
        loss = functional.cross_entropy(self.rotation(turned).flatten(1), torch.ones_like(y))
        auxiliary.zero_grad()
        self.manual_backward(loss)
        auxiliary.step()
        loss = functional.cross_entropy(self(x), y)
        classifier.zero_grad()
        self.manual_backward(loss)
        classifier.step()

    def configure_optimizers(self) -> Any:
        return sgd(self.model.parameters()), torch.optim.Adam(self.rotation.parameters())


def test_manual_optimization_with_an_auxiliary_layer(tmp_path: Path) -> None:
    module = TwoOptimizers()
    callback = FSTCallback(ALPHA, "uniform", head="model.7", seed=SEED)
    trainer(callback, folder=tmp_path).fit(module, clean_loader())
    assert largest_difference(module.model, expected()) < 1e-6


class LoadsWeights(LitClassifier):
    """Loads a backdoored checkpoint where many projects do."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def setup(self, stage: str) -> None:
        self.model.load_state_dict(torch.load(self.path, weights_only=True))


def test_weights_that_are_loaded_in_setup(tmp_path: Path) -> None:
    path = tmp_path / "backdoored.pth"
    torch.save(make_cnn(seed=7).state_dict(), path)
    module = LoadsWeights(path)
    with pytest.raises(ValueError, match=r"replaced before the first step.*Load the weights"):
        trainer(FSTCallback(seed=SEED), folder=tmp_path).fit(module, clean_loader())
