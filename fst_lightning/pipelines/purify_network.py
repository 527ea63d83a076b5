"""Purify a network in Python: no configuration, no Trainer to write."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fst_lightning.defenses import (
    CleanData,
    DatasetDefense,
    Defense,
    NoDefense,
    PoisonedData,
    apply,
)
from fst_lightning.defenses.train import fresh_copy
from fst_lightning.modules import PurificationModule
from fst_lightning.modules.classifier import OptimizerFactory, SchedulerFactory
from fst_lightning.pipelines.parts import quiet_lightning
from fst_lightning.seeds import derived_seed

_BATCH_SIZE = 128


def purify(
    net: nn.Module,
    clean_loader: Iterable[Any],
    defense: Defense,
    max_epochs: int = 10,
    *,
    lr: float = 0.01,
    optimizer: OptimizerFactory | None = None,
    scheduler: SchedulerFactory | None = None,
    seed: int | None = None,
    poisoned_loader: Iterable[Any] | None = None,
    **trainer_options: Any,
) -> nn.Module:
    """Purify a copy of a network on a few clean images.

    Args:
        net: the classifier; images to logits. It stays as it is.
        clean_loader: batches of ``(images, labels)``, the images normalised as the network wants.
        defense: e.g. ``FST(alpha=0.2)``. One that wants images held out gets a share of them,
            which no step sees: all are read once, as the loader gives them, and kept in memory.
        max_epochs: passes over the loader, 1 or more; for a defense that cleans a training set,
            passes over what it leaves.
        lr: of the default optimizer (SGD with momentum 0.9), greater than 0.
        optimizer: makes another one from the parameters; ``lr`` is then not used.
        scheduler: makes the schedule, per epoch; None: cosine to zero over ``max_epochs``.
        seed: of the defense's random numbers; None takes ``torch.initial_seed()``.
        poisoned_loader: batches ``(images, labels)`` of the training set as it was delivered, for
            a defense that inspects it.
        trainer_options: for ``lightning.Trainer``, e.g. ``accelerator``, ``precision``.

    Returns:
        The purified network, on the CPU, in evaluation mode.

    Raises:
        ValueError: where the network has no linear head to be found, the head is zero, or
            ``max_epochs`` is no whole number of 1 or more; where the defense inspects a training
            set that it is not given.

    Example:
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from fst_lightning.defenses import FST
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> images, labels = torch.rand(16, 3, 2, 2), torch.randint(3, (16,))
        >>> loader = DataLoader(TensorDataset(images, labels), batch_size=8)
        >>> purified = purify(net, loader, FST(alpha=0.2), max_epochs=1, accelerator="cpu")
        >>> bool(torch.isclose(purified[3].weight.norm(), net[3].weight.norm()))
        True
    """
    # Lightning takes -1 for "for ever".
    if not isinstance(max_epochs, int) or max_epochs < 1:
        raise ValueError(
            f"Expected `max_epochs` to be a whole number of 1 or more, but got {max_epochs!r}."
        )
    if isinstance(clean_loader, list | tuple):
        # Lightning would take it for several loaders.
        clean_loader = DataLoader(clean_loader, batch_size=None)  # type: ignore[arg-type]
    if defense.needs_poisoned_set and poisoned_loader is None:
        raise ValueError(
            f"Expected `poisoned_loader`, the training set as it was delivered, which "
            f"{type(defense).__name__} inspects, but got None."
        )
    quiet_lightning()
    net = copy.deepcopy(net)
    if isinstance(defense, NoDefense):
        return net.cpu().eval()
    start = torch.initial_seed() if seed is None else seed
    clean, loader = _clean_data(clean_loader, defense, start, poisoned_loader)
    options: dict[str, Any] = {
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        **trainer_options,
    }
    optimizer = optimizer or functools.partial(torch.optim.SGD, lr=lr, momentum=0.9)
    scheduler = scheduler or functools.partial(
        torch.optim.lr_scheduler.CosineAnnealingLR, T_max=max_epochs
    )

    def fit(tuned: nn.Module, by: Defense, batches: Iterable[Any], data: CleanData | None) -> None:
        module = PurificationModule(tuned, by, optimizer, scheduler, seed=seed, clean=data)
        trainer = L.Trainer(max_epochs=max_epochs, **options)
        trainer.fit(module, train_dataloaders=batches)

    if defense.tunes:
        fit(net, defense, loader, clean)
        _warn_of_shortfall(defense)
        return net.cpu().eval()
    if clean is None:
        clean = CleanData.gather(loader)
    device = L.Trainer(max_epochs=0, **options).strategy.root_device
    clean = clean.to(device)
    apply(defense, net.to(device), clean, torch.Generator().manual_seed(start))
    if isinstance(defense, DatasetDefense) and clean.poisoned is not None:
        weights = torch.Generator().manual_seed(derived_seed(start, "weights"))

        def train(fresh: nn.Module, rows: PoisonedData) -> nn.Module:
            fit(fresh, Defense(), _shuffled(rows, _batch_size(poisoned_loader), start), None)
            return fresh

        found = defense.retrain(
            lambda: fresh_copy(net.cpu(), weights),
            clean.poisoned,
            defense.suspected.cpu(),
            torch.Generator().manual_seed(derived_seed(start, "retrain")),
            train,
        )
        net = net if found is None else found
    _warn_of_shortfall(defense)
    return net.cpu().eval()


def _warn_of_shortfall(defense: Defense) -> None:
    """Say what the defense did not do, such as prune: the network that it leaves shows nothing."""
    what = defense.shortfall()
    if what is not None:
        summary = defense.findings().get("summary", "")
        rank_zero_warn(f"{type(defense).__name__}: {what}. {summary}".rstrip())


def _clean_data(
    loader: Iterable[Any], defense: Defense, seed: int, poisoned_loader: Iterable[Any] | None
) -> tuple[CleanData | None, Iterable[Any]]:
    """What the module can't gather itself from the loader, and the loader of the steps."""
    if not (defense.held_out or defense.needs_poisoned_set):
        return None, loader
    clean = CleanData.gather(loader)
    generator = torch.Generator().manual_seed(derived_seed(seed, "unseen"))
    clean = clean.split(defense.held_out, generator)
    if poisoned_loader is not None:
        delivered = CleanData.gather(poisoned_loader)
        clean.poisoned = PoisonedData(delivered.images, delivered.labels)
    if not defense.held_out:
        return clean, loader
    return clean, _shuffled(clean, _batch_size(loader), seed)


def _shuffled(data: CleanData | PoisonedData, batch_size: int, seed: int) -> Iterable[Any]:
    count = len(data)
    return DataLoader(
        TensorDataset(data.images.cpu(), data.labels.cpu()),
        batch_size,
        shuffle=True,
        generator=torch.Generator().manual_seed(derived_seed(seed, "order")),
        drop_last=count > batch_size and count % batch_size == 1,  # BatchNorm can't take one image
    )


def _batch_size(loader: Iterable[Any] | None) -> int:
    """The batches of a loader, as far as it says."""
    size = getattr(loader, "batch_size", None)
    return size if isinstance(size, int) else _BATCH_SIZE
