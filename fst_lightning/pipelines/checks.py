"""Refuses settings that would fail only after a long training, or never end."""

from __future__ import annotations

from typing import Any, get_args

import torch
from omegaconf import DictConfig
from torch import nn

from fst_lightning.data.protocol import CleanSource
from fst_lightning.modules import CropFill
from fst_lightning.modules.classifier import Interval, total_steps_of, with_total_steps
from fst_lightning.pipelines.arguments import check_arguments
from fst_lightning.pipelines.parts import make_optimizer, precision_of
from fst_lightning.pipelines.resume import named_checkpoint
from fst_lightning.pipelines.run import Run

_LARGEST_SEED = 2**32 - 1


def check_settings(run: Run) -> None:
    """Look at everything that needs neither data nor network.

    Raises:
        ValueError: for a seed, recipe or precision that can't be used.
        FileNotFoundError: where ``resume`` names no checkpoint.
    """
    _check_whole("seed", run.cfg.seed, 0, _LARGEST_SEED)
    for name in ("training", "tuning"):
        if name in run.cfg:
            _check_recipe(name, run.cfg[name])
    check_arguments(run.cfg.trainer)
    precision_of(run)
    named_checkpoint(run)


def _check_recipe(name: str, recipe: DictConfig) -> None:
    # Lightning takes max_epochs=-1 for "for ever".
    _check_whole(f"{name}.max_epochs", recipe.max_epochs, 1)
    _check_whole(f"{name}.batch_size", recipe.batch_size, 1)
    if recipe.scheduler_interval not in get_args(Interval):
        raise ValueError(
            f"Expected `{name}.scheduler_interval` to be one of {', '.join(get_args(Interval))}, "
            f"but got {recipe.scheduler_interval!r}."
        )
    for key in ("augment", "balanced", "alternate_flips"):
        if not isinstance(recipe.get(key, False), bool):
            raise ValueError(
                f"Expected `{name}.{key}` to be true or false, but got {recipe[key]!r}."
            )
    if recipe.get("crop_padding") is not None:
        _check_whole(f"{name}.crop_padding", recipe.crop_padding, 0)
    if recipe.get("crop_fill", "zeros") not in get_args(CropFill):
        raise ValueError(
            f"Expected `{name}.crop_fill` to be one of {', '.join(get_args(CropFill))}, "
            f"but got {recipe.crop_fill!r}."
        )
    if recipe.get("clean_source", "train") not in get_args(CleanSource):
        raise ValueError(
            f"Expected `{name}.clean_source` to be one of {', '.join(get_args(CleanSource))}, "
            f"but got {recipe.clean_source!r}."
        )
    optimizer, scheduler = make_optimizer(recipe)
    if total_steps_of(optimizer) is None:
        optimizer = with_total_steps(optimizer, 1)
    try:
        tried = optimizer([nn.Parameter(torch.zeros(1))])
        if scheduler is not None:
            if total_steps_of(scheduler) is None:
                scheduler = with_total_steps(scheduler, 1)
            scheduler(tried)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Expected `{name}.optimizer` and `{name}.scheduler` to work together, but got: {error}"
        ) from error


def _check_whole(name: str, value: Any, low: int, high: int | None = None) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        valid = f"of {low} or more" if high is None else f"from {low} to {high}"
        raise ValueError(f"Expected `{name}` to be a whole number {valid}, but got {value!r}.")
