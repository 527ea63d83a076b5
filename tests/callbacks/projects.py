"""Projects of users who know nothing of this package, small enough to fit in milliseconds."""

from collections.abc import Callable, Iterable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader, TensorDataset

NUM_CLASSES = 4
SIZE = 4
NUM_ROWS = 50
BATCH_SIZE = 5
HEAD = "classifier.head"

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
Rows = DataLoader[tuple[Tensor, ...]]


def sgd(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return SGD(parameters, lr=0.1, momentum=0.9)


def make_net(seed: int = 0, *, batch_norm: bool = False) -> nn.Sequential:
    """A convolution and a head named ``head``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential()
        net.add_module("conv", nn.Conv2d(3, 6, 3))
        if batch_norm:
            net.add_module("norm", nn.BatchNorm2d(6))
        net.add_module("relu", nn.ReLU())
        net.add_module("flatten", nn.Flatten())
        net.add_module("head", nn.Linear(24, NUM_CLASSES))
        return net


def make_tensors(num_rows: int = NUM_ROWS, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 4, 4) in [0, 1] and labels (N,)."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(num_rows, 3, SIZE, SIZE, generator=generator)
    return images, torch.randint(NUM_CLASSES, (num_rows,), generator=generator)


def make_loader(
    num_rows: int = NUM_ROWS, batch_size: int = BATCH_SIZE, *, shuffle: bool = False
) -> Rows:
    return DataLoader(TensorDataset(*make_tensors(num_rows)), batch_size, shuffle=shuffle)


def make_trainer(*callbacks: L.Callback, **options: Any) -> L.Trainer:
    """A Trainer on one CPU process that writes and prints nothing."""
    quiet: dict[str, Any] = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return L.Trainer(callbacks=list(callbacks), **(quiet | options))


class Project(L.LightningModule):
    """What most projects look like."""

    def __init__(self, net: nn.Module | None = None, make_optimizer: MakeOptimizer = sgd) -> None:
        super().__init__()
        self.classifier = make_net() if net is None else net
        self.make_optimizer = make_optimizer

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(images)
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        images, labels = batch
        return functional.cross_entropy(self(images), labels)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, labels = batch
        self.log("val/own_accuracy", (self(images).argmax(1) == labels).float().mean())

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        return self.make_optimizer(self.parameters())


class Spy(L.Callback):
    """Keeps the head's weight as the first step finds it and as every batch leaves it."""

    def __init__(self, head: str = HEAD) -> None:
        self.head = head
        self.first: list[dict[str, Tensor]] = []
        self.weights: list[Tensor] = []

    def _weight(self, module: nn.Module) -> Tensor:
        weight = module.get_submodule(self.head).weight
        assert isinstance(weight, Tensor)
        return weight.detach().clone()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.first = [{k: v.clone() for k, v in pl_module.state_dict().items()}]

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.weights.append(self._weight(pl_module))


def largest_difference(one: nn.Module, other: nn.Module) -> float:
    """Over all entries of two state dicts."""
    left, right = one.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    return max(float((left[k].double() - right[k].double()).abs().max()) for k in left)
