"""Refuses settings that would fail only after a long training, or never end."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from fst_lightning.data.defender_images import CleanSource
from fst_lightning.modules import CropFill
from fst_lightning.modules.classifier import Interval, total_steps_of, with_total_steps
from fst_lightning.pipelines.build.arguments import check_arguments
from fst_lightning.pipelines.build.parts import make_optimizer, precision_of
from fst_lightning.pipelines.build.run import Run
from fst_lightning.pipelines.measure.mismatch import OnMismatch
from fst_lightning.pipelines.runtime.resume import named_checkpoint
from fst_lightning.pipelines.search.automatic import OnNoSetting
from fst_lightning.validate import check_choice, check_number

_LARGEST_SEED = 2**32 - 1
_MOST_WORKERS = 1024
_GROUPS = ("attack", "defense", "data", "model", "training", "tuning", "trainer", "paths")
_SINGLE = (
    "seed",
    "num_workers",
    "cuda_graphs",
    "val_images",
    "resume",
    "debug",
    "retrain",
    "checkpoint",
)
_OF_PURIFY_ALONE = ("defense", "tuning", "checkpoint")
_SWITCHES = ("cuda_graphs", "debug", "retrain", "report.enabled")
_TEXTS = ("checkpoint", "export", "paths.data", "paths.store", "paths.outputs")


def check_settings(run: Run) -> None:
    """Check the settings that need neither data nor network.

    Raises:
        ValueError: If a part is missing or invalid, a ``${...}`` has no target, or a seed, recipe
            or precision cannot be used.
        FileNotFoundError: If ``resume`` names no checkpoint.
    """
    _check_complete(run.cfg)
    _check_parts(run.cfg)
    check_number("seed", run.cfg.seed, low=0, high=_LARGEST_SEED, whole=True)
    if run.cfg.num_workers is not None:
        check_number("num_workers", run.cfg.num_workers, low=0, high=_MOST_WORKERS, whole=True)
    if run.cfg.val_images is not None:
        check_number("val_images", run.cfg.val_images, low=1, whole=True)
    for name in ("training", "tuning"):
        if name in run.cfg:
            _check_recipe(name, run.cfg[name])
    if "tuning" in run.cfg:
        _check_search(run.cfg.tuning)
    check_arguments(run.cfg.trainer)
    for group in ("callbacks", "logger"):
        run.parts(group)
    deterministic = run.cfg.trainer.get("deterministic")
    if not (deterministic is None or isinstance(deterministic, bool) or deterministic == "warn"):
        raise ValueError(
            "Expected `trainer.deterministic` to be true, false, warn or null, but got "
            f"{deterministic!r}."
        )
    asked, used = str(run.cfg.trainer.precision), precision_of(run)
    if asked.startswith("16") and used == "bf16-mixed":
        rank_zero_warn(f"trainer.precision={asked} is {used} on a CPU, and is recorded as that.")
    on_mismatch = run.cfg.get("on_mismatch", "stop")
    check_choice("on_mismatch", on_mismatch, OnMismatch)
    named_checkpoint(run)


def _check_complete(cfg: DictConfig, prefix: str = "") -> None:
    """Refuse ``???``, and a ``${...}`` without a target, in any key."""
    for name in map(str, cfg):
        key = prefix + name
        if OmegaConf.is_missing(cfg, name):
            raise ValueError(f"Expected `{key}` to be set: it has no default ({key}=...).")
        try:
            value = cfg[name]
            if isinstance(value, ListConfig):
                OmegaConf.to_container(value, resolve=True)
        except OmegaConfBaseException as error:
            why = str(error).splitlines()[0]
            raise ValueError(
                f"Expected `{key}` to be a value, or ${{ANOTHER.KEY}}, but it can't be read: {why}."
            ) from error
        if isinstance(value, DictConfig):
            _check_complete(value, f"{key}.")


def _check_parts(cfg: DictConfig) -> None:
    """Refuse a configuration with a missing part, or a part of the wrong type."""
    for name in (*_GROUPS, *_SINGLE):
        if name not in cfg and (cfg.task == "purify" or name not in _OF_PURIFY_ALONE):
            raise ValueError(
                f"Expected `{name}`, but it was removed. Remove ~{name} from the command."
            )
        if name in _GROUPS and name in cfg and not isinstance(cfg[name], DictConfig):
            raise ValueError(
                f"Expected {name}=OPTION, one of those that --help lists, but got {cfg[name]!r}."
            )
    for keys, kind, valid in ((_SWITCHES, bool, "true or false"), (_TEXTS, str, "text")):
        for key in keys:
            value = OmegaConf.select(cfg, key)
            if value is not None and (not isinstance(value, kind) or value == ""):
                raise ValueError(f"Expected `{key}` to be {valid}, but got {value!r}.")


def _check_recipe(name: str, recipe: DictConfig) -> None:
    for part in ("optimizer", "scheduler"):
        found = recipe[part]
        if not isinstance(found, DictConfig) and (part == "optimizer" or found is not None):
            raise ValueError(
                f"Expected `{name}.{part}` to be a group of keys ({name}.{part}._target_=CLASS), "
                f"but got {found!r}."
            )
        if found is not None and found.get("_partial_") is not True:
            raise ValueError(
                f"Expected `{name}.{part}._partial_` to be true, but got "
                f"{found.get('_partial_')!r}. It is called with the weights later."
            )
    # For Lightning, max_epochs=-1 means no limit.
    check_number(f"{name}.max_epochs", recipe.max_epochs, low=1, whole=True)
    check_number(f"{name}.batch_size", recipe.batch_size, low=1, whole=True)
    check_number(f"{name}.label_smoothing", recipe.get("label_smoothing", 0.0), high=1)
    check_choice(f"{name}.scheduler_interval", recipe.scheduler_interval, Interval)
    for key in ("augment", "balanced", "alternate_flips"):
        if not isinstance(recipe.get(key, False), bool):
            raise ValueError(
                f"Expected `{name}.{key}` to be true or false, but got {recipe[key]!r}."
            )
    if recipe.get("crop_padding") is not None:
        check_number(f"{name}.crop_padding", recipe.crop_padding, low=0, whole=True)
    check_choice(f"{name}.crop_fill", recipe.get("crop_fill", "zeros"), CropFill)
    check_choice(f"{name}.clean_source", recipe.get("clean_source", "train"), CleanSource)
    if OmegaConf.select(recipe, "optimizer.lr") == "auto":
        if name != "tuning":
            raise ValueError(
                f"Expected `{name}.optimizer.lr` to be a number, but got 'auto', which is for "
                "tuning.optimizer.lr: a purification has clean images to choose it on."
            )
        recipe = copy.deepcopy(recipe)
        recipe.optimizer.lr = recipe.lr_range[0]
    optimizer, scheduler = make_optimizer(recipe)
    if total_steps_of(optimizer) is None:
        optimizer = with_total_steps(optimizer, 1)
    try:
        tried = optimizer([nn.Parameter(torch.zeros(1))])
        if scheduler is not None:
            if total_steps_of(scheduler) is None:
                scheduler = with_total_steps(scheduler, 1)
            scheduler(tried)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(
            f"Expected `{name}.optimizer` and `{name}.scheduler` to work together, but got: {error}"
        ) from error


def _check_search(tuning: DictConfig) -> None:
    """Refuse a range of learning rates that ``tuning.optimizer.lr=auto`` cannot search."""
    found = tuning.lr_range
    low, high = found if isinstance(found, ListConfig) and len(found) == 2 else (0.0, 0.0)
    if not (_is_number(low) and _is_number(high) and 0 < low <= high):
        raise ValueError(
            "Expected `tuning.lr_range` to be two learning rates, [LOWEST, HIGHEST] and above 0, "
            f"but got {found}."
        )
    check_number("tuning.max_ca_drop", tuning.max_ca_drop, high=1)
    check_number("tuning.folds", tuning.folds, low=2, whole=True)
    if tuning.recipe_images is not None:
        check_number("tuning.recipe_images", tuning.recipe_images, low=1, whole=True)
    check_choice("tuning.on_no_setting", tuning.on_no_setting, OnNoSetting)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
