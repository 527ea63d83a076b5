"""Random combinations of what users do, each compared with a plain loop or refused with a reason.

A silent difference is the failure that this search is for: either the weights are those of the
published algorithm, or the fit is refused.
"""

from __future__ import annotations

import copy
import functools
import math
import random
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import lightning as L
import pytest
import pytorch_lightning as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from fst_lightning import FSTCallback, PurificationModule, purify
from fst_lightning.defenses import FST

CHOICES: dict[str, tuple[Any, ...]] = {
    "driver": ("callback", "pytorch_lightning", "module", "purify"),
    "network": ("linear", "bn", "conv_head", "no_bias", "tied_norm"),
    "optimizer": ("sgd", "momentum", "adam", "adamw", "groups"),
    "reinit": ("uniform", "none"),
    "alpha": (0.0, 0.2, 2),
    "project_norm": (True, False),
    "images": ("float32", "float64", "uint8", "negative"),
    "labels": ("int64", "int32", "soft"),
    "rows": (24, 21, 4),
    "accumulate": (1, 2, 4),
    "clip": (None, 0.5),
    "frozen": ("nothing", "a bias", "the body", "the head", "the head's bias"),
    "before": ("nothing", "validate", "fit", "lr_find", "evaluation mode", "no grad", "interrupt"),
    "epochs": (1, 3),
}
"""What each dimension of the search can be; the first is the usual case."""

SEED = 11


@dataclass
class Case:
    """One combination."""

    driver: str = "callback"
    network: str = "linear"
    optimizer: str = "sgd"
    reinit: Any = "uniform"
    alpha: float = 0.2
    project_norm: bool = True
    images: str = "float32"
    labels: str = "int64"
    rows: int = 24
    accumulate: int = 1
    clip: float | None = None
    frozen: str = "nothing"
    before: str = "nothing"
    epochs: int = 1


def draw(seed: int) -> Case:
    """Four dimensions away from the usual case at the most, so that refusals do not hide others."""
    numbers = random.Random(seed)
    changed = numbers.sample(sorted(CHOICES), numbers.randint(1, 5))
    return Case(**{name: numbers.choice(CHOICES[name]) for name in changed})


class Net(nn.Module):
    """A small classifier of 3 x 4 x 4 images, its head last."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm: nn.Module = nn.BatchNorm2d(6) if kind in ("bn", "tied_norm") else nn.Identity()
        self.again = self.norm if kind == "tied_norm" else nn.Identity()
        self.convolutional = kind == "conv_head"
        self.head: Any = (
            nn.Conv2d(6, 4, 1) if kind == "conv_head" else nn.Linear(24, 4, bias=kind != "no_bias")
        )

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.again(self.norm(self.conv(images))))
        if self.convolutional:
            logits: Tensor = self.head(features).mean((2, 3))
        else:
            logits = self.head(features.flatten(1))
        return logits


def make_net(case: Case) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = Net(case.network)
    if case.frozen == "a bias":
        net.conv.get_parameter("bias").requires_grad_(False)
    elif case.frozen == "the body":
        net.requires_grad_(False)
        net.head.requires_grad_(True)
    elif case.frozen == "the head":
        net.head.requires_grad_(False)
    elif case.frozen == "the head's bias" and net.head.bias is not None:
        net.head.bias.requires_grad_(False)
    return net.eval() if case.before == "evaluation mode" else net


def make_batches(case: Case) -> DataLoader[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(case.rows, 3, 4, 4, generator=generator)
    labels = torch.randint(4, (case.rows,), generator=generator)
    if case.images == "float64":
        images = images.double()
    elif case.images == "uint8":
        images = (images * 255).byte()
    elif case.images == "negative":
        images = images * 4 - 2
    if case.labels == "int32":
        labels = labels.int()
    elif case.labels == "soft":
        labels = functional.one_hot(labels, 4).float() * 0.8 + 0.05
    return DataLoader(TensorDataset(images, labels), batch_size=6)


def make_optimizer(kind: str, parameters: Any) -> torch.optim.Optimizer:
    trained = [p for p in parameters if p.requires_grad]
    if kind == "adam":
        return torch.optim.Adam(trained, lr=0.01)
    if kind == "adamw":
        return torch.optim.AdamW(trained, lr=0.01, weight_decay=0.1)
    if kind == "groups":
        groups: list[dict[str, Any]] = [
            {"params": trained[:1], "lr": 0.01},
            {"params": trained[1:]},
        ]
        return torch.optim.SGD(groups, lr=0.05, weight_decay=1e-3)
    momentum = 0.9 if kind == "momentum" else 0.0
    return torch.optim.SGD(trained, lr=0.05, momentum=momentum)


def expected(case: Case) -> nn.Module:
    """The published algorithm, step by step, with accumulation and clipping."""
    net = make_net(case)
    if case.images == "float64":
        net.double()
    weight, bias = net.head.weight, net.head.bias
    reference = weight.detach().clone()
    if case.reinit == "uniform":
        bound, generator = 1 / math.sqrt(weight.shape[1]), torch.Generator().manual_seed(SEED)
        with torch.no_grad():
            for parameter in (weight, bias):
                if parameter is not None:
                    drawn = torch.empty(parameter.shape)
                    parameter.copy_(drawn.uniform_(-bound, bound, generator=generator))
    net.train()
    batches: Any = list(make_batches(case))
    fits = [case.epochs, case.epochs] if case.before == "fit" else [case.epochs]
    for epochs in fits:
        optimizer = make_optimizer(case.optimizer, net.parameters())
        for _ in range(epochs):
            for number, (images, labels) in enumerate(batches, start=1):
                if images.dtype == torch.uint8:
                    images = images.float() / 255
                if not labels.is_floating_point():
                    labels = labels.long()
                loss = functional.cross_entropy(net(images), labels) / case.accumulate
                window = case.accumulate if number % case.accumulate else 0
                torch.autograd.backward(loss)
                if window and number < len(batches):
                    continue
                # A short last window is divided by the full length too, the penalty alike.
                taken = number % case.accumulate or case.accumulate
                penalty = case.alpha * (weight * reference).sum() * taken / case.accumulate
                torch.autograd.backward(penalty)
                if case.clip is not None:
                    torch.nn.utils.clip_grad_norm_(net.parameters(), case.clip)
                optimizer.step()
                optimizer.zero_grad()
                if case.project_norm:
                    with torch.no_grad():
                        weight.mul_(reference.norm() / weight.norm())
    return net


def make_project(package: Any, case: Case, net: nn.Module) -> Any:
    class Project(package.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = net
            self.lr = 0.05

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            images, labels = batch
            if images.dtype == torch.uint8:
                images = images.float() / 255
            if not labels.is_floating_point():
                labels = labels.long()
            return functional.cross_entropy(self.net(images), labels)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            """Measure nothing."""

        def on_train_epoch_start(self) -> None:
            self.train()

        def configure_optimizers(self) -> Any:
            return make_optimizer(case.optimizer, self.parameters())

    return Project()


def options_of(case: Case, folder: Any) -> dict[str, Any]:
    return {
        "max_epochs": case.epochs,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accumulate_grad_batches": case.accumulate,
        "gradient_clip_val": case.clip,
        "precision": "64-true" if case.images == "float64" else "32-true",
        "default_root_dir": folder,
    }


class Stop(Exception):
    """An interruption."""


def interrupting(package: Any) -> Any:
    class Interrupts(package.Callback):  # type: ignore[misc]
        def on_train_start(self, *_: Any) -> None:
            raise Stop

    return Interrupts()


def run(case: Case, folder: Any) -> nn.Module:
    """Do what the case says, in the way that users do it."""
    net, batches = make_net(case), make_batches(case)
    defense = FST(case.alpha, case.reinit, case.project_norm)
    options = options_of(case, folder)
    factory = functools.partial(make_optimizer, case.optimizer)
    if case.driver == "purify":
        options.pop("max_epochs")
        schedule = functools.partial(torch.optim.lr_scheduler.ConstantLR, factor=1)
        arguments: dict[str, Any] = {
            "optimizer": factory,
            "scheduler": schedule,
            "seed": SEED,
            **options,
        }
        epochs = 2 * case.epochs if case.before == "fit" else case.epochs
        with torch.no_grad() if case.before == "no grad" else nullcontext():
            purified: nn.Module = purify(net, batches, defense, epochs, **arguments)
        return purified
    package = pl if case.driver == "pytorch_lightning" else L
    callbacks: list[Any] = []
    if case.driver == "module":
        module: Any = PurificationModule(net, defense, factory, seed=SEED)
    else:
        module = make_project(package, case, net)
        callbacks = [FSTCallback(case.alpha, case.reinit, case.project_norm, seed=SEED)]

    def trainer(*more: Any) -> Any:
        return package.Trainer(callbacks=[*callbacks, *more], **options)

    if case.before == "validate":
        trainer().validate(module, batches, verbose=False)
    elif case.before == "fit":
        trainer().fit(module, batches)
    elif case.before == "lr_find":
        tuner = (pl if package is pl else L.pytorch).tuner.Tuner(trainer())
        tuner.lr_find(module, batches, num_training=3, update_attr=False)
    elif case.before == "interrupt":
        with pytest.raises(Stop):
            trainer(interrupting(package)).fit(module, batches)
    if case.before == "no grad":
        with torch.no_grad():
            trainer().fit(module, batches)
    else:
        trainer().fit(module, batches)
    return net


def has_to_be_refused(case: Case) -> bool:
    """What cannot be purified: features or a head that do not train."""
    return case.frozen in ("the body", "the head")


def check(case: Case, folder: Any) -> str:
    """Compare a case with the plain loop; the outcome in a word."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            net = run(case, folder)
        except (ValueError, TypeError, MisconfigurationException) as error:
            if "Expected" not in str(error):
                raise
            return "refused"
    assert not has_to_be_refused(case), case
    plain = expected(case)
    left, right = net.state_dict(), copy.deepcopy(plain).state_dict()
    assert left.keys() == right.keys(), case
    for name, value in right.items():
        # The gradient of the penalty is float32 in the callback, whatever the weights are.
        torch.testing.assert_close(
            left[name].double(), value.double(), atol=2e-6, rtol=1e-5, msg=lambda m: f"{case}: {m}"
        )
    return "equal"


@pytest.mark.parametrize("seed", range(40))
def test_combination(seed: int, tmp_path: Any) -> None:
    check(draw(seed), tmp_path)


@pytest.mark.slow
def test_many_combinations(tmp_path: Any) -> None:
    outcomes = [check(draw(seed), tmp_path) for seed in range(40, 1000)]
    assert outcomes.count("equal") > 500
