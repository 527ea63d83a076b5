"""What two processes do in `test_ddp.py`; each runs all cases, one after the other."""

import os
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from fst_lightning.attacks import BadNets, TrainedAttack
from fst_lightning.callbacks import BackdoorMetricsCallback, DefenseCallback, FSTCallback
from fst_lightning.data import BackdoorDataModule, ImageSet, Source
from fst_lightning.defenses import FST, CleanData, Defense, LinearProbing
from fst_lightning.modules import BackdoorModule, PurificationModule

NUM_CLASSES = 4
SIZE = 4
NUM_ROWS = 40
BATCH_SIZE = 5
"""Rows a batch in each of two processes; one process alone takes twice as many."""
ALPHA = 0.3

MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "clip": {"gradient_clip_val": 0.5},
    "accumulate": {"accumulate_grad_batches": 3},
}
SIZES = [(101, 7), (101, 200), (3, 7), (1, 2), (28, 7)]
"""Test rows and evaluation batch size."""


def make_net(*, batch_norm: bool, seed: int = 0) -> nn.Sequential:
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
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (num_rows, 3, SIZE, SIZE), generator=generator)
    labels = torch.randint(NUM_CLASSES, (num_rows,), generator=generator)
    return images.to(torch.uint8), labels


def make_loader(num_processes: int, batch_size: int) -> Any:
    """Images in [0, 1]; of two processes, one takes the even rows and the other the odd ones."""
    images, labels = make_tensors()
    rows = TensorDataset(images.float() / 255, labels)
    if num_processes == 1:
        return DataLoader(rows, batch_size)
    # A sampler of our own: the one that Lightning puts into a training loader shuffles.
    sampler: Any = DistributedSampler(rows, num_processes, distributed.get_rank(), shuffle=False)
    return DataLoader(rows, batch_size, sampler=sampler)


def make_attack() -> BadNets:
    attack = BadNets(patch_size=16, target_label=0)
    attack.prepare(*make_tensors(), NUM_CLASSES, 0)
    return attack


class Numbered(Source):
    """Training images that carry their row number in every pixel; random test images."""

    def __init__(self, num_test: int) -> None:
        super().__init__(image_size=None, mean=[0.4] * 3, std=[0.3] * 3)
        self.num_test = num_test

    def _load(self) -> tuple[ImageSet, ImageSet, tuple[str, ...]]:
        numbers = torch.arange(NUM_ROWS, dtype=torch.uint8)
        train = numbers[:, None, None, None].expand(-1, 3, SIZE, SIZE).contiguous()
        images, labels = make_tensors(self.num_test, seed=2)
        labels[0] = 1  # there is always a row that gets the trigger
        classes = tuple(str(label) for label in range(NUM_CLASSES))
        return ImageSet(train, make_tensors()[1]), ImageSet(images, labels), classes


class Project(L.LightningModule):
    """A project that knows nothing of this package."""

    def __init__(self, *, batch_norm: bool) -> None:
        super().__init__()
        self.net = make_net(batch_norm=batch_norm)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        return functional.cross_entropy(self(images), labels)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


class Numbers(BackdoorModule):
    """Keeps the row numbers of every epoch's batches."""

    def __init__(self) -> None:
        super().__init__(make_net(batch_norm=True), make_attack(), sgd, seed=0)
        self.seen: list[list[list[int]]] = []

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.seen.append([])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen[-1].append(batch[0][:, 0, 0, 0].tolist())
        return super().training_step(batch, batch_idx)


class FirstHead(L.Callback):
    """Keeps the head that the first step finds."""

    weight: Tensor

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.weight = pl_module.get_parameter("net.head.weight").detach().clone()


def make_trainer(num_processes: int, *callbacks: L.Callback, **options: Any) -> L.Trainer:
    quiet: dict[str, Any] = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "devices": num_processes,
        "strategy": "ddp" if num_processes > 1 else "auto",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return L.Trainer(callbacks=list(callbacks), **(quiet | options))


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def purify_as_module(
    num_processes: int, defense: Defense, *, batch_norm: bool, **options: Any
) -> dict[str, Tensor]:
    module = PurificationModule(make_net(batch_norm=batch_norm), defense, sgd, seed=0)
    loader = make_loader(num_processes, BATCH_SIZE * 2 // num_processes)
    make_trainer(num_processes, **options).fit(module, loader)
    return weights(module.net)


def purify_as_callback(
    num_processes: int, defense: Defense, *, batch_norm: bool, **options: Any
) -> dict[str, Tensor]:
    project = Project(batch_norm=batch_norm)
    loader = make_loader(num_processes, BATCH_SIZE * 2 // num_processes)
    trainer = make_trainer(num_processes, DefenseCallback(defense, seed=0), **options)
    trainer.fit(project, loader)
    return weights(project.net)


WAYS: dict[str, Callable[..., dict[str, Tensor]]] = {
    "module": purify_as_module,
    "callback": purify_as_callback,
}


def evaluate(num_processes: int, num_test: int, batch_size: int) -> dict[str, Any]:
    """Validate after every epoch of a fit, then test; the network has BatchNorm."""
    data = BackdoorDataModule(
        Numbered(num_test),
        make_attack(),
        purpose="purify",
        batch_size=BATCH_SIZE,
        eval_batch_size=batch_size,
        clean_ratio=0.5,
    )
    module = PurificationModule(
        make_net(batch_norm=True),
        LinearProbing(),  # equal weights, however many processes
        lambda parameters: torch.optim.SGD(parameters, lr=1e-3),
        attack=data.attack,
        mean=[0.4] * 3,
        std=[0.3] * 3,
    )
    trainer = make_trainer(num_processes, max_epochs=1)
    trainer.fit(module, datamodule=data)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    trainer.test(module, datamodule=data, verbose=False)
    return {"logged": logged, "counts": module.counts, "net": weights(module.net)}


def order(num_processes: int) -> list[list[list[int]]]:
    data = BackdoorDataModule(
        Numbered(7), make_attack(), batch_size=BATCH_SIZE * 2 // num_processes
    )
    module = Numbers()
    make_trainer(num_processes, limit_val_batches=0).fit(module, datamodule=data)
    return module.seen


def heads(num_processes: int, seed: int) -> dict[str, Tensor]:
    """A global seed of its own for every process, and none for the defense."""
    found = {}
    for way in WAYS:
        first = FirstHead()
        torch.manual_seed(seed)
        if way == "module":
            module: Any = PurificationModule(make_net(batch_norm=False), FST(ALPHA, "uniform"), sgd)
            trainer = make_trainer(num_processes, first)
        else:
            module = Project(batch_norm=False)
            trainer = make_trainer(num_processes, first, FSTCallback(ALPHA, "uniform"))
        trainer.fit(module, make_loader(num_processes, BATCH_SIZE))
        found[f"{way}, first"] = first.weight
        found[f"{way}, last"] = module.get_parameter("net.head.weight").detach().clone()
    return found


def measure_as_callback(num_processes: int) -> dict[str, float]:
    trainer = make_trainer(num_processes, BackdoorMetricsCallback(make_attack()))
    trainer.validate(Project(batch_norm=True), make_loader(num_processes, 4), verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


class Shift(TrainedAttack):
    """Learns a constant to add, on the rows that it poisons, for its first epoch alone."""

    def __init__(self) -> None:
        super().__init__(poison_ratio=0.5)
        self.shift = nn.Parameter(torch.zeros(1, 3, 1, 1))

    def trigger(self, images: Tensor) -> Tensor:
        return images + 0.1 * torch.tanh(self.shift)

    def own_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([self.shift], lr=0.1)

    def begin_epoch(self, epoch: int, num_epochs: int) -> None:
        self.shift.requires_grad_(epoch == 0)


def learn_trigger(num_processes: int) -> dict[str, Tensor]:
    attack = Shift()
    module = BackdoorModule(make_net(batch_norm=False), attack, sgd, seed=0)
    loader = make_loader(num_processes, BATCH_SIZE * 2 // num_processes)
    images, labels = loader.dataset.tensors
    loader.dataset.tensors = (images, labels, torch.arange(NUM_ROWS) % 4 < 2)
    make_trainer(num_processes).fit(module, loader)
    return {**weights(module.net), "attack.shift": attack.shift.detach().clone()}


class Drifts(Defense):
    """Works on all the images in every process, as kernels do that differ in the last digit."""

    found: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("found", torch.empty(0))
        self.seen = torch.empty(0)

    def _rank(self) -> int:
        return distributed.get_rank() if distributed.is_initialized() else 0

    def study(self, net: nn.Module, clean: CleanData, generator: torch.Generator) -> None:
        self.seen = clean.labels
        self.found = clean.labels[torch.randperm(len(clean), generator=generator)] + self._rank()

    def begin_epoch(
        self, net: nn.Module, clean: CleanData, epoch: int, generator: torch.Generator
    ) -> None:
        with torch.no_grad():
            net.get_parameter("head.bias").add_(1e-3 * self._rank())

    def conclude(self, net: nn.Module, clean: CleanData, generator: torch.Generator) -> None:
        with torch.no_grad():
            net.get_parameter("conv.bias").add_(1e-3 * self._rank())


def work_on_all_images(num_processes: int) -> dict[str, Tensor]:
    defense = Drifts()
    net = purify_as_module(num_processes, defense, batch_norm=False)
    return {**net, "found": defense.found, "seen": defense.seen}


def all_cases(num_processes: int, rank: int) -> dict[str, Any]:
    """Everything that can be compared between one process and two."""
    results: dict[str, Any] = {"all images": work_on_all_images(num_processes)}
    for way, purify in WAYS.items():
        for mode, options in MODES.items():
            key = f"{way}, {mode}"
            results[key] = purify(num_processes, FST(ALPHA), batch_norm=False, **options)
        results[f"{way}, probing"] = purify(num_processes, LinearProbing(), batch_norm=True)
        results[f"{way}, norm"] = purify(num_processes, FST(ALPHA), batch_norm=True)
    for num_test, batch_size in SIZES:
        results[f"evaluate {num_test} by {batch_size}"] = evaluate(
            num_processes, num_test, batch_size
        )
    results["learned trigger"] = learn_trigger(num_processes)
    results["order"] = order(num_processes)
    results["heads"] = heads(num_processes, seed=100 + rank)
    results["metrics"] = measure_as_callback(num_processes)
    return results


def worker(rank: int, folder: str) -> None:
    """Take part as one of two processes; leave the results in a file."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)  # tells Lightning that the processes are there already
    try:
        # A file to meet in can't be taken by another program, as a port can.
        distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
        )
        torch.save(all_cases(2, rank), Path(folder, f"{rank}.pt"))
        distributed.destroy_process_group()
    except BaseException:
        Path(folder, f"{rank}.txt").write_text(traceback.format_exc())
        raise
