"""Chooses a learning rate and the weight of a penalty on clean images, without a trigger."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

from omegaconf import OmegaConf
from torch import Tensor, nn

from fst_lightning.configuration import ALPHA, LEARNING_RATE
from fst_lightning.data import BackdoorDataModule
from fst_lightning.defenses import PoisonedData
from fst_lightning.pipelines.build.parts import automatic_keys, make_defense
from fst_lightning.pipelines.build.run import Run
from fst_lightning.pipelines.runtime.processes import is_first_process
from fst_lightning.pipelines.search.probe import Probe, Trial
from fst_lightning.reports.results.choices import choice

OnNoSetting = Literal["stop", "weakest"]
"""Whether a run without a setting within the budget stops, or takes the least costly one."""

PER_DECADE = 3
"""The number of settings per power of ten."""

_FEWEST = 6
_BY_HEART = 0.99  # of the images right before suggest that the network was trained on them


def choose_settings(
    run: Run, net: nn.Module, data: BackdoorDataModule, poisoned: PoisonedData | None = None
) -> dict[str, Any]:
    """Choose what the configuration leaves to the run: a learning rate, then an alpha.

    Each is the strongest value on a logarithmic grid that the budget of clean accuracy allows. To
    try a value, the defender's images are split into ``tuning.folds`` folds. For each fold, a copy
    of the network is tuned on the images of the other folds, for half the epochs of the recipe, and
    classifies the images of this fold. The answers are compared with those of the network before
    the defense, image by image.

    A value is rejected only if the images show, with 95 % confidence, that it costs more than the
    budget. The search favors the stronger defense, because clean accuracy can be measured without a
    trigger, but the remaining backdoor cannot.

    The budget is ``tuning.max_ca_drop``. The learning rate is the highest within the budget. If
    alpha is chosen too, the rate has half of the budget and is searched with the weakest alpha. If
    the head is initialized anew, a rate that is too low costs accuracy as well, so the rates are
    tried one by one from the highest. Alpha is searched by bisection, because the drop is assumed
    to grow with alpha.

    If no rate is within the budget, or not even the weakest alpha, the run stops before the tuning.
    With ``tuning.on_no_setting=weakest`` it continues. The least costly value becomes the baseline,
    the strongest value that costs at most the budget on top of it is chosen, and the results record
    that the budget was exceeded.

    Args:
        run: The run, with ``tuning.optimizer.lr=auto``, ``defense.alpha=auto`` or both; the chosen
            numbers are written into its configuration.
        net: The backdoored network; it is not changed.
        data: The defender's images. Its test set and trigger are not used.
        poisoned: The training set as it was delivered, for a defense that inspects it.

    Returns:
        The tried values, for ``results.json``; with ``shortfalls`` if the budget was exceeded.

    Raises:
        ValueError: If there are too few images, or no setting is within the budget.
    """
    keys = automatic_keys(run)
    count = len(data.train_rows) + len(data.held_out_rows or ())
    fewest = max(_FEWEST, int(run.cfg.tuning.folds))
    if count < fewest:
        raise ValueError(
            f"Expected {fewest} or more clean images for {keys[0]}=auto, but got {count}; give a "
            "number, or more images with tuning.clean_ratio."
        )
    probe = Probe(run, net, data, poisoned)
    defense = make_defense(run)
    budget = float(run.cfg.tuning.max_ca_drop)
    low, high = run.cfg.tuning.lr_range
    if ALPHA in keys:
        probe.set(ALPHA, defense.alpha_range(net)[0])
    if LEARNING_RATE in keys:
        probe.set(LEARNING_RATE, low)
    before = probe.before()
    found: dict[str, Any] = {}
    shortfalls: list[dict[str, str]] = []
    if LEARNING_RATE in keys:
        allowed = budget / 2 if ALPHA in keys else budget
        search = _Search(probe, LEARNING_RATE, before, allowed, run.cfg.tuning.on_no_setting)
        search.highest(log_grid(high, low))
        found["lr_search"] = _settle(run, "lr_search", search)
        shortfalls += search.shortfalls()
    if ALPHA in keys:
        search = _Search(probe, ALPHA, before, budget, run.cfg.tuning.on_no_setting)
        search.strongest(log_grid(*defense.alpha_range(net)))
        found["alpha_search"] = _settle(run, "alpha_search", search)
        shortfalls += search.shortfalls()
    return found | ({"shortfalls": shortfalls} if shortfalls else {})


def _settle(run: Run, name: str, search: _Search) -> dict[str, Any]:
    """Write the chosen number into the configuration, and print why it was chosen."""
    search.probe.set(search.key, search.chosen)
    OmegaConf.update(run.cfg, search.key, search.chosen)
    record = search.record()
    if is_first_process():
        print(choice(name, record), flush=True)
    return record


class _Search:
    """Looks for the strongest value of one key within a budget of clean accuracy.

    Args:
        probe: Tries the values.
        key: Its key in the configuration.
        before: The images that the network classifies correctly before the defense, ``(N,)`` bool.
        allowed: The largest drop in clean accuracy, in [0, 1].
        on_no_setting: Whether to stop or continue if no value is within the budget.
    """

    def __init__(
        self,
        probe: Probe,
        key: str,
        before: Tensor,
        allowed: float,
        on_no_setting: OnNoSetting = "stop",
    ) -> None:
        self.probe, self.key, self.allowed = probe, key, allowed
        self.on_no_setting = on_no_setting
        self.before = self.reference = before
        self.baseline: tuple[float, Trial] | None = None
        self.tried: dict[float, Trial] = {}
        self.chosen = math.nan

    def highest(self, grid: list[float]) -> None:
        """Choose the first value that fits.

        Raises:
            ValueError: If none fits and the run must stop then.
        """
        fitting = next(filter(self.fits, grid), None)
        if fitting is None:
            cheapest = min(grid, key=lambda value: self.tried[value].drop)
            self.compare_with(cheapest)
            fitting = next(filter(self.fits, grid), cheapest)
        self.chosen = fitting

    def strongest(self, grid: list[float]) -> None:
        """Choose the last value that fits, assuming that all values before it fit.

        Raises:
            ValueError: If not even the first one fits and the run must stop then.
        """
        if not self.fits(grid[0]):
            self.compare_with(grid[0])
            self.fits(grid[0])
        self.chosen = strongest(grid, self.fits)

    def fits(self, value: float) -> bool:
        """Whether a value may be within the budget."""
        self.probe.set(self.key, value)
        self.tried[value] = self.probe(self.reference, self.allowed)
        return self.tried[value].found.within(self.allowed)

    def compare_with(self, value: float) -> None:
        """Take the answers with this value as the baseline, because it exceeds the budget itself.

        Raises:
            ValueError: If the run must stop instead.
        """
        self.probe.set(self.key, value)
        trial = self.probe(self.before, 1.0)
        self.reference, self.baseline = trial.right, (value, trial)
        if self.on_no_setting == "stop":
            raise ValueError(self.refusal())

    def refusal(self) -> str:
        """The error message: why the run stops, and what to do."""
        right, total = int(self.before.sum()), len(self.before)
        advice = (
            f"Raise tuning.max_ca_drop, give {self.key} a number, or continue with "
            "tuning.on_no_setting=weakest (docs/automatic.md)."
        )
        if right >= _BY_HEART * total:
            advice += (
                f" The network classifies {right} of these {total} images correctly, perhaps "
                "because it was trained on them. Images that it has not seen estimate better "
                "(tuning.clean_source=heldout)."
            )
        return (
            f"Expected {self.key}=auto to find a value that costs at most "
            f"{100 * self.allowed:.1f} points of clean accuracy (tuning.max_ca_drop), but got "
            f"none: {self.least()} Nothing was tuned. {advice}"
        )

    def least(self) -> str:
        """A sentence on the cost of the least costly value."""
        if self.baseline is None:
            return ""
        value, trial = self.baseline
        low, high = trial.found.bounds
        return (
            f"{_short(value)}, the least costly of {len(self.tried)} tried, costs "
            f"{100 * trial.found.drop:.1f} points ({100 * low:.1f} to {100 * high:.1f}) on "
            f"{trial.found.total} clean images."
        )

    def shortfalls(self) -> list[dict[str, str]]:
        """The entry for ``results.json`` and the report if no value was within the budget."""
        if self.baseline is None:
            return []
        return [
            {
                "what": f"No value of {self.key} was within the budget of clean accuracy",
                "why": f"{self.least()} tuning.max_ca_drop allows {100 * self.allowed:.1f}.",
            }
        ]

    def record(self) -> dict[str, Any]:
        """The tried values, as plain data."""
        return {
            "chosen": self.chosen,
            "within_budget": self.baseline is None,
            "compared_with": "before" if self.baseline is None else _short(self.baseline[0]),
            "compared_with_ca_drop": 0.0 if self.baseline is None else self.baseline[1].found.drop,
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


def _short(value: float) -> str:
    return f"{value:.3g}"


def log_grid(weakest: float, strongest: float) -> list[float]:
    """Evenly spaced numbers on a logarithmic scale, at least :data:`PER_DECADE` per power of ten.

    Example:
        >>> [round(value, 3) for value in log_grid(1.0, 0.01)]
        [1.0, 0.464, 0.215, 0.1, 0.046, 0.022, 0.01]
    """
    steps = max(1, math.ceil(PER_DECADE * abs(math.log10(strongest / weakest)) - 1e-9))
    return [float(weakest * (strongest / weakest) ** (i / steps)) for i in range(steps + 1)]


def strongest(grid: list[float], fits: Callable[[float], bool]) -> float:
    """Find the last number that fits, by bisection; all numbers before it must fit as well.

    Args:
        grid: The numbers in order; the first one is assumed to fit.
        fits: Whether a number fits; called about log2 of their count times.

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
