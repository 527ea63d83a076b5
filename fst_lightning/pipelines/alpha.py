"""Chooses the weight of a penalty without a trigger: on clean images alone."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
from omegaconf import open_dict
from torch import Tensor, nn

from fst_lightning.data import BackdoorDataModule, ImageSet
from fst_lightning.data.rows import EpochShuffle, Rows, training_loader
from fst_lightning.defenses import NoDefense, PoisonedData
from fst_lightning.metrics import paired_drop_interval
from fst_lightning.modules import ClassifierModule
from fst_lightning.pipelines.finish import is_first_process
from fst_lightning.pipelines.parts import make_clean, make_defense, make_module, make_trainer
from fst_lightning.pipelines.run import Run
from fst_lightning.pipelines.score import untouched
from fst_lightning.seeds import derived_seed

MAX_CA_DROP = 0.02
"""What a penalty may cost in clean accuracy, where the defense does not say."""

CONFIDENCE = 0.95
"""With which a setting has to be shown to cost more before it is given up; one-sided."""

FOLDS = 3
"""So many parts the defender's images are cut into: each is judged by a tuning on the others."""

PER_DECADE = 3
"""How many settings are told apart between one power of ten and the next."""

_FEWEST = 6
_BATCH = 500


@dataclass(frozen=True)
class Comparison:
    """Two networks' answers to the same clean images.

    Attributes:
        lost: images that only the first one gets right.
        gained: images that only the second one gets right.
        total: images that were compared.
    """

    lost: int
    gained: int
    total: int

    @property
    def drop(self) -> float:
        """How much accuracy the second one lost."""
        return (self.lost - self.gained) / self.total

    @property
    def bounds(self) -> tuple[float, float]:
        """What it lost at least, and at most, with a confidence of :data:`CONFIDENCE` each."""
        return paired_drop_interval(self.lost, self.gained, self.total, 2 * CONFIDENCE - 1)

    def within(self, allowed: float) -> bool:
        """Whether the drop may be within what is allowed: it is not shown to be greater."""
        return self.bounds[0] <= allowed


def choose_alpha(
    run: Run, net: nn.Module, data: BackdoorDataModule, poisoned: PoisonedData | None = None
) -> tuple[float, dict[str, Any]]:
    """The strongest alpha that clean accuracy bears.

    The settings are a logarithmic grid over :meth:`Defense.alpha_range`. To try one, copies of the
    network are tuned by half the epochs of the recipe, each on two thirds of the defender's images,
    and asked about the other third: together they answer every image once, unseen. The answers are
    compared with those of the network that came in, image by image; where the weakest setting is
    not within ``defense.max_ca_drop`` of it, none is (the recipe itself costs that, or the network
    knew these images by heart), and the answers of the weakest setting are the measure.

    A setting is given up where the images show, with 95 % confidence, that it costs more than
    ``max_ca_drop``: the burden of proof is with the weaker defense, for what it would leave behind
    can't be seen without a trigger, while clean accuracy can. The strongest of the others is
    searched by bisection: the drop is taken to grow with the strength.

    Args:
        run: its configuration, with ``defense.alpha=auto``.
        net: the backdoored network; it stays as it is.
        data: holds the defender's images. Its test set and trigger are not looked at.
        poisoned: the training set as it was delivered, for a defense that inspects it.

    Returns:
        The number, and what was tried, for ``results.json``.

    Raises:
        ValueError: for too few images.
    """
    defense = make_defense(run)
    allowed = float(getattr(defense, "max_ca_drop", MAX_CA_DROP))
    count = len(data.train_rows)
    if count < _FEWEST:
        raise ValueError(
            f"Expected {_FEWEST} or more clean images for defense.alpha=auto, but got {count}; "
            "give a number, or more images with tuning.clean_ratio."
        )
    grid = log_grid(*defense.alpha_range(net))
    probe = _Probe(run, net, data, poisoned)
    tried: dict[float, Comparison] = {}

    def fits(alpha: float) -> bool:
        right, asked = probe(alpha, reference, allowed)
        tried[alpha] = compare(reference[asked], right[asked], count)
        return tried[alpha].within(allowed)

    before = probe.before()
    weakest, asked = probe(grid[0], before, 1.0)
    against = compare(before[asked], weakest[asked], count)
    own_price = not against.within(allowed)
    reference = weakest if own_price else before
    tried[grid[0]] = compare(reference, weakest, count)
    chosen = strongest(grid, fits)
    search = {
        "compared_with": "weakest" if own_price else "before",
        "max_ca_drop": allowed,
        "weakest_ca_drop": against.drop,
        "tried": {
            f"{alpha:.3g}": {
                **dataclasses.asdict(found),
                "ca_drop": found.drop,
                "ca_drop_bounds": list(found.bounds),
            }
            for alpha, found in sorted(tried.items())
        },
    }
    if is_first_process():
        _say(chosen, tried, allowed, against if own_price else None)
    return chosen, {"alpha_search": search}


def _say(
    chosen: float, tried: dict[float, Comparison], allowed: float, price: Comparison | None
) -> None:
    found = tried[chosen]
    measure = "the network that came in"
    if price is not None:
        measure = (
            f"the weakest setting (which itself answers {100 * price.drop:.1f} points worse than "
            "the network that came in)"
        )
    low, high = found.bounds
    print(
        f"alpha={chosen:.3g} chosen of {len(tried)} that were tried on {found.total} clean images: "
        f"it costs {100 * found.drop:.1f} points of clean accuracy ({100 * low:.1f} to "
        f"{100 * high:.1f}), {100 * allowed:.1f} are allowed; measured against {measure}",
        flush=True,
    )


class _Probe:
    """Answers of briefly tuned copies of a network to images that they have not seen."""

    def __init__(
        self, run: Run, net: nn.Module, data: BackdoorDataModule, poisoned: PoisonedData | None
    ) -> None:
        self.run = dataclasses.replace(run, cfg=copy.deepcopy(run.cfg))
        self.run.cfg.tuning.max_epochs = math.ceil(run.cfg.tuning.max_epochs / 2)
        self.net = net
        self.data = data
        self.poisoned = poisoned
        count = len(data.train_rows)
        stream = torch.Generator().manual_seed(derived_seed(run.cfg.seed, "folds"))
        self.folds = torch.randperm(count, generator=stream).tensor_split(FOLDS)

    def before(self) -> Tensor:
        """Which images the network that came in gets right, ``(N,)`` bool."""
        with TemporaryDirectory() as scratch:
            trainer = make_trainer(self.run, "before", 0, Path(scratch), quiet=True)
            module = make_module(self.run, copy.deepcopy(self.net), NoDefense(), self.data)
            return _right(trainer, module, self.data.train_rows)

    def __call__(self, alpha: float, reference: Tensor, allowed: float) -> tuple[Tensor, Tensor]:
        """Try a setting; no further folds once it has lost too much, were the rest unchanged.

        Returns:
            Which images are answered right, and which were asked, ``(N,)`` bool each.
        """
        rows = self.data.train_rows
        right, asked = (torch.zeros(len(rows), dtype=torch.bool) for _ in range(2))
        with open_dict(self.run.cfg):
            self.run.cfg.defense.alpha = alpha
        for fold in self.folds:
            kept = torch.ones(len(rows), dtype=torch.bool)
            kept[fold] = False
            right[fold] = self._tuned(rows.subset(kept.nonzero()[:, 0]), rows.subset(fold))
            asked[fold] = True
            if not compare(reference[asked], right[asked], len(rows)).within(allowed):
                break
        return right, asked

    def _tuned(self, rows: ImageSet, unseen: ImageSet) -> Tensor:
        """Tune a copy by the recipe, and ask it about images that it has not seen."""
        clean = make_clean(self.data, rows, poisoned=self.poisoned)
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
    """Which images are classified as labelled, ``(N,)`` bool; the same in every process."""
    device = trainer.strategy.root_device
    hits = []
    with untouched(trainer, module):
        for start in range(0, len(rows), _BATCH):
            images, labels = (t[start : start + _BATCH] for t in (rows.images, rows.labels))
            hits.append(module(images.to(device)).argmax(1).cpu() == labels)
    right = torch.cat(hits)
    if trainer.world_size > 1:
        right = trainer.strategy.broadcast(right)  # a last digit may differ
    return right


def compare(first: Tensor, second: Tensor, total: int) -> Comparison:
    """Count the images that only one of two networks gets right.

    Args:
        first: ``(n,)`` bool, whether it is right.
        second: ``(n,)`` bool.
        total: all images, n or more; those that were not asked count as unchanged.

    Example:
        >>> compare(torch.tensor([True, True, False]), torch.tensor([True, False, False]), 3)
        Comparison(lost=1, gained=0, total=3)
    """
    return Comparison(int((first & ~second).sum()), int((~first & second).sum()), total)


def log_grid(weakest: float, strongest: float) -> list[float]:
    """Numbers from the first to the last, :data:`PER_DECADE` a power of ten or a few more.

    Example:
        >>> [round(value, 3) for value in log_grid(1.0, 0.01)]
        [1.0, 0.464, 0.215, 0.1, 0.046, 0.022, 0.01]
    """
    steps = max(1, math.ceil(PER_DECADE * abs(math.log10(strongest / weakest)) - 1e-9))
    return [float(weakest * (strongest / weakest) ** (i / steps)) for i in range(steps + 1)]


def strongest(grid: list[float], fits: Callable[[float], bool]) -> float:
    """The last of the numbers that fit, where all that stand before one that fits do; by bisection.

    Args:
        grid: the first one is not asked.
        fits: asked about as many as the logarithm of their number.

    Example:
        >>> strongest([1.0, 2.0, 3.0, 4.0, 5.0], lambda number: number < 3.5)
        3.0
    """
    low, high = 0, len(grid) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if fits(grid[middle]):
            low = middle
        else:
            high = middle - 1
    return grid[low]
