"""Measures the clean accuracy that a setting of a defense costs, on images unseen in tuning."""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from fst_lightning.data import BackdoorDataModule, ImageSet
from fst_lightning.data.rows import EpochShuffle, Rows, training_loader
from fst_lightning.defenses import NoDefense, PoisonedData
from fst_lightning.defenses.common.clean_data import held_out_rows
from fst_lightning.metrics import paired_drop_interval
from fst_lightning.modules import ClassifierModule
from fst_lightning.pipelines.build.parts import make_clean, make_defense, make_module, make_trainer
from fst_lightning.pipelines.build.run import Run
from fst_lightning.pipelines.measure.score import untouched
from fst_lightning.seeds import derived_seed

CONFIDENCE = 0.95
"""The one-sided confidence that is needed to reject a setting."""

_BATCH = 500


@dataclass(frozen=True)
class Comparison:
    """The answers of two networks to the same clean images.

    Attributes:
        lost: Number of images that only the first network classifies correctly.
        gained: Number of images that only the second network classifies correctly.
        total: Number of images.
    """

    lost: int
    gained: int
    total: int

    @property
    def drop(self) -> float:
        """The accuracy that the second network lost."""
        return (self.lost - self.gained) / self.total

    @property
    def bounds(self) -> tuple[float, float]:
        """The bounds of that loss, each with confidence :data:`CONFIDENCE`."""
        return paired_drop_interval(self.lost, self.gained, self.total, 2 * CONFIDENCE - 1)

    def within(self, allowed: float) -> bool:
        """Whether the drop is not shown to be greater than allowed."""
        return self.bounds[0] <= allowed


@dataclass(frozen=True)
class Trial:
    """The result of one setting.

    Attributes:
        right: The images that were classified correctly, ``(N,)`` bool.
        asked: The images that were classified, ``(N,)`` bool; all, unless the trial ended early.
        found: The comparison with the baseline.
    """

    right: Tensor
    asked: Tensor
    found: Comparison

    @property
    def drop(self) -> float:
        """The accuracy that it lost on the classified images."""
        return (self.found.lost - self.found.gained) / int(self.asked.sum())


class Probe:
    """Tries settings on copies of a network, and counts correct answers to unseen images.

    The defender's images are split into ``tuning.folds`` folds. For each fold, a copy is tuned
    briefly on the images of the other folds and classifies those of this fold, so that every image
    counts. If the defense holds images out of its steps, they are taken from the tuning images.

    Args:
        run: The run; :meth:`set` writes into a copy of its configuration.
        net: The network before the defense; it is not changed.
        data: The defender's images.
        poisoned: The training set as it was delivered, for a defense that inspects it.
    """

    def __init__(
        self, run: Run, net: nn.Module, data: BackdoorDataModule, poisoned: PoisonedData | None
    ) -> None:
        self.run = dataclasses.replace(run, cfg=copy.deepcopy(run.cfg))
        self.run.cfg.tuning.max_epochs = math.ceil(run.cfg.tuning.max_epochs / 2)
        self.net = net
        self.data = data
        self.poisoned = poisoned
        self.rows = data.train_rows
        if data.held_out_rows is not None:
            parts = data.train_rows, data.held_out_rows
            self.rows = ImageSet(
                torch.cat([part.images for part in parts]),
                torch.cat([part.labels for part in parts]),
            )
        stream = torch.Generator().manual_seed(derived_seed(run.cfg.seed, "folds"))
        order = torch.randperm(len(self.rows), generator=stream)
        self.folds = order.tensor_split(run.cfg.tuning.folds)
        self._settings: dict[str, float] = {}
        self._answers: dict[tuple[Any, ...], Tensor] = {}

    def before(self) -> Tensor:
        """The images that the network classifies correctly before the defense, ``(N,)`` bool."""
        with TemporaryDirectory() as scratch:
            trainer = make_trainer(self.run, "before", 0, Path(scratch), quiet=True)
            module = make_module(self.run, copy.deepcopy(self.net), NoDefense(), self.data)
            return _right(trainer, module, self.rows)

    def set(self, key: str, value: float) -> None:
        """Use this value in the next trials."""
        OmegaConf.update(self.run.cfg, key, value, force_add=True)
        self._settings[key] = value

    def __call__(self, reference: Tensor, allowed: float) -> Trial:
        """Try the current setting, and stop as soon as the folds so far have lost too much.

        A fold that was tuned with this setting before is not tuned again.

        Args:
            reference: The images that the baseline classifies correctly, ``(N,)`` bool.
            allowed: The largest drop in accuracy, in [0, 1].
        """
        rows = self.rows
        right, asked = (torch.zeros(len(rows), dtype=torch.bool) for _ in range(2))
        for number, fold in enumerate(self.folds):
            key = (number, *sorted(self._settings.items()))
            if key not in self._answers:
                kept = torch.ones(len(rows), dtype=torch.bool)
                kept[fold] = False
                others = rows.subset(kept.nonzero()[:, 0])
                self._answers[key] = self._tuned(others, rows.subset(fold))
            right[fold] = self._answers[key]
            asked[fold] = True
            trial = Trial(right, asked, compare(reference[asked], right[asked], len(rows)))
            if not trial.found.within(allowed):
                break
        return trial

    def _tuned(self, rows: ImageSet, unseen: ImageSet) -> Tensor:
        """Tune a copy with the recipe, and let it classify images that it has not seen."""
        held_out = None
        if self.data.held_out:
            stream = torch.Generator().manual_seed(derived_seed(self.run.cfg.seed, "unseen"))
            held, kept = held_out_rows(len(rows), self.data.held_out, stream)
            rows, held_out = rows.subset(kept), rows.subset(held)
        clean = make_clean(self.data, rows, held_out, self.poisoned)
        module = make_module(
            self.run, copy.deepcopy(self.net), make_defense(self.run), self.data, clean=clean
        )
        loader = training_loader(
            Rows(rows, torch.zeros(len(rows), dtype=torch.bool)),
            self.data.batch_size,
            EpochShuffle(len(rows), self.run.cfg.seed),
        )
        with TemporaryDirectory() as scratch:
            epochs = self.run.cfg.tuning.max_epochs
            trainer = make_trainer(self.run, "probe", epochs, Path(scratch), quiet=True)
            trainer.fit(module, loader)
            return _right(trainer, module, unseen)


@torch.no_grad()
def _right(trainer: L.Trainer, module: ClassifierModule, rows: ImageSet) -> Tensor:
    """The images that are classified as labeled, ``(N,)`` bool; the same in every process."""
    device = trainer.strategy.root_device
    hits = []
    with untouched(trainer, module):
        for start in range(0, len(rows), _BATCH):
            images, labels = (t[start : start + _BATCH] for t in (rows.images, rows.labels))
            hits.append(module(images.to(device)).argmax(1).cpu() == labels)
    right = torch.cat(hits)
    if trainer.world_size > 1:
        right = trainer.strategy.broadcast(right)  # processes may differ in the last digit
    return right


def compare(first: Tensor, second: Tensor, total: int) -> Comparison:
    """Count the images that only one of two networks gets right.

    Args:
        first: ``(n,)`` bool, whether the first network is right.
        second: ``(n,)`` bool, the same for the second network.
        total: Number of all images, n or more; those that were not classified count as unchanged.

    Example:
        >>> compare(torch.tensor([True, True, False]), torch.tensor([True, False, False]), 3)
        Comparison(lost=1, gained=0, total=3)
    """
    return Comparison(int((first & ~second).sum()), int((~first & second).sum()), total)
