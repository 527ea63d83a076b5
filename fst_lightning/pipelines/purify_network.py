"""Purify a network in Python: no configuration, no Trainer to write."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader

from fst_lightning.defenses import Defense
from fst_lightning.modules import PurificationModule
from fst_lightning.modules.classifier import OptimizerFactory, SchedulerFactory
from fst_lightning.pipelines.parts import quiet_lightning


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
    **trainer_options: Any,
) -> nn.Module:
    """Purify a copy of a network on a few clean images.

    Args:
        net: the classifier; images to logits. It stays as it is.
        clean_loader: batches of ``(images, labels)``, the images normalised as the network wants.
        defense: e.g. ``FST(alpha=0.2)``.
        max_epochs: passes over the loader, 1 or more.
        lr: of the default optimizer (SGD with momentum 0.9), greater than 0.
        optimizer: makes another one from the parameters; ``lr`` is then not used.
        scheduler: makes the schedule, per epoch; None: cosine to zero over ``max_epochs``.
        seed: of the defense's random numbers; None takes ``torch.initial_seed()``.
        trainer_options: for ``lightning.Trainer``, e.g. ``accelerator``, ``precision``.

    Returns:
        The purified network, on the CPU, in evaluation mode.

    Raises:
        ValueError: where the network has no linear head to be found, the head is zero, or
            ``max_epochs`` is no whole number of 1 or more.

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
    quiet_lightning()
    net = copy.deepcopy(net)
    if not defense.tunes:
        return net.cpu().eval()
    module = PurificationModule(
        net,
        defense,
        optimizer or functools.partial(torch.optim.SGD, lr=lr, momentum=0.9),
        scheduler
        or functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=max_epochs),
        seed=seed,
    )
    options: dict[str, Any] = {
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        **trainer_options,
    }
    trainer = L.Trainer(max_epochs=max_epochs, **options)
    trainer.fit(module, train_dataloaders=clean_loader)
    return net.cpu().eval()
