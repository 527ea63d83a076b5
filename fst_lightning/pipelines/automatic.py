"""Chooses a learning rate and the weight of a penalty without a trigger: on clean images alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from omegaconf import OmegaConf
from torch import Tensor, nn

from fst_lightning.data import BackdoorDataModule
from fst_lightning.defenses import PoisonedData
from fst_lightning.pipelines.finish import is_first_process
from fst_lightning.pipelines.parts import ALPHA, LEARNING_RATE, automatic_keys, make_defense
from fst_lightning.pipelines.probe import Probe, Trial
from fst_lightning.pipelines.run import Run

MAX_CA_DROP = 0.02
"""What a penalty may cost in clean accuracy, where the defense does not say."""

PER_DECADE = 3
"""How many settings are told apart between one power of ten and the next."""

_FEWEST = 6


def choose_settings(
    run: Run, net: nn.Module, data: BackdoorDataModule, poisoned: PoisonedData | None = None
) -> dict[str, Any]:
    """Fill in what the configuration leaves to the run: a learning rate, then an alpha.

    Both are the strongest that clean accuracy bears, on logarithmic grids. To try a setting, copies
    of the network are tuned by half the epochs of the recipe, each on two thirds of the defender's
    images, and asked about the other third: together they answer every image once, unseen. The
    answers are compared with those of the network that came in, image by image.

    A setting is given up where the images show, with 95 % confidence, that it costs more than is
    allowed: the burden of proof is with the weaker defense, for what it would leave behind can't be
    seen without a trigger, while clean accuracy can.

    The learning rate is the highest that costs no more than ``tuning.max_ca_drop``, with the
    weakest alpha where that is open, too. Too low a rate costs accuracy as well, where a head is
    learned anew: the rates are tried one by one, from the highest. Alpha is the strongest that
    costs no more than ``defense.max_ca_drop``, by bisection: the drop is taken to grow with it.

    Where no rate, or not even the weakest alpha, is within the drop of the network that came in,
    none can be (the recipe itself costs that, or the network knew these images by heart): the
    setting that costs least is the measure then.

    Args:
        run: its configuration, with ``tuning.optimizer.lr=auto``, ``defense.alpha=auto`` or both;
            the numbers that are chosen are written into it.
        net: the backdoored network; it stays as it is.
        data: holds the defender's images. Its test set and trigger are not looked at.
        poisoned: the training set as it was delivered, for a defense that inspects it.

    Returns:
        What was tried, for ``results.json``.

    Raises:
        ValueError: for too few images.
    """
    keys = automatic_keys(run)
    count = len(data.train_rows)
    if count < _FEWEST:
        raise ValueError(
            f"Expected {_FEWEST} or more clean images for {keys[0]}=auto, but got {count}; give a "
            "number, or more images with tuning.clean_ratio."
        )
    probe = Probe(run, net, data, poisoned)
    defense = make_defense(run)
    low, high = run.cfg.tuning.lr_range
    if ALPHA in keys:
        probe.set(ALPHA, defense.alpha_range(net)[0])
    if LEARNING_RATE in keys:
        probe.set(LEARNING_RATE, low)
    before = probe.before()
    searches: dict[str, Any] = {}
    if LEARNING_RATE in keys:
        search = _Search(probe, LEARNING_RATE, before, float(run.cfg.tuning.max_ca_drop))
        search.highest(log_grid(high, low))
        searches["lr_search"] = _settle(run, search)
    if ALPHA in keys:
        allowed = float(getattr(defense, "max_ca_drop", MAX_CA_DROP))
        search = _Search(probe, ALPHA, before, allowed)
        search.strongest(log_grid(*defense.alpha_range(net)))
        searches["alpha_search"] = _settle(run, search)
    return searches


def _settle(run: Run, search: _Search) -> dict[str, Any]:
    """Write the number that was chosen into the configuration, and say why it was."""
    search.probe.set(search.key, search.chosen)
    OmegaConf.update(run.cfg, search.key, search.chosen)
    if is_first_process():
        print(search.sentence(), flush=True)
    return search.record()


class _Search:
    """Looks for the strongest value of one key that clean accuracy bears.

    Args:
        probe: tries them.
        key: of the configuration.
        before: which images the network that came in gets right, ``(N,)`` bool.
        allowed: the drop in clean accuracy that a value may cost, in [0, 1].
    """

    def __init__(self, probe: Probe, key: str, before: Tensor, allowed: float) -> None:
        self.probe, self.key, self.allowed = probe, key, allowed
        self.before = self.reference = before
        self.measure: tuple[float, Trial] | None = None
        self.tried: dict[float, Trial] = {}
        self.chosen = math.nan

    def highest(self, grid: list[float]) -> None:
        """Choose the first of the values that fits."""
        fitting = next(filter(self.fits, grid), None)
        if fitting is None:
            cheapest = min(grid, key=lambda value: self.tried[value].drop)
            self.measure_by(cheapest)
            fitting = next(filter(self.fits, grid), cheapest)
        self.chosen = fitting

    def strongest(self, grid: list[float]) -> None:
        """Choose the last of the values that fits, where all before one that fits do."""
        if not self.fits(grid[0]):
            self.measure_by(grid[0])
            self.fits(grid[0])
        self.chosen = strongest(grid, self.fits)

    def fits(self, value: float) -> bool:
        """Whether a value may be within what is allowed."""
        self.probe.set(self.key, value)
        self.tried[value] = self.probe(self.reference, self.allowed)
        return self.tried[value].found.within(self.allowed)

    def measure_by(self, value: float) -> None:
        """Compare with what this value gives from now on, for it costs too much itself."""
        self.probe.set(self.key, value)
        trial = self.probe(self.before, 1.0)
        self.reference, self.measure = trial.right, (value, trial)

    def record(self) -> dict[str, Any]:
        """What was tried, as plain values."""
        return {
            "chosen": self.chosen,
            "compared_with": "before" if self.measure is None else _short(self.measure[0]),
            "compared_with_ca_drop": 0.0 if self.measure is None else self.measure[1].found.drop,
            "max_ca_drop": self.allowed,
            "tried": {
                _short(value): {
                    **dataclasses.asdict(trial.found),
                    "ca_drop": trial.found.drop,
                    "ca_drop_bounds": list(trial.found.bounds),
                }
                for value, trial in sorted(self.tried.items())
            },
        }

    def sentence(self) -> str:
        """What was chosen, and why."""
        measure = "the network that came in"
        if self.measure is not None:
            value, trial = self.measure
            measure = (
                f"{_short(value)} (which itself answers {100 * trial.found.drop:.1f} points worse "
                "than the network that came in)"
            )
        found = self.tried[self.chosen].found
        low, high = found.bounds
        return (
            f"{self.key}={_short(self.chosen)} chosen of {len(self.tried)} that were tried on "
            f"{found.total} clean images: it costs {100 * found.drop:.1f} points of clean accuracy "
            f"({100 * low:.1f} to {100 * high:.1f}), {100 * self.allowed:.1f} are allowed; "
            f"measured against {measure}"
        )


def _short(value: float) -> str:
    return f"{value:.3g}"


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
