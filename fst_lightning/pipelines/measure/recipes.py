"""The recipes of a run, for ``results.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from omegaconf import OmegaConf

from fst_lightning.data import Source
from fst_lightning.pipelines.build.parts import augmentation
from fst_lightning.pipelines.build.run import Run

_SETTINGS = {
    "training": ("label_smoothing",),
    "tuning": ("clean_ratio", "clean_source", "balanced"),
}


def recipe_block(
    run: Run, recipe: Literal["training", "tuning"], source: Source, **resolved: Any
) -> dict[str, Any]:
    """A recipe with the numbers that were used, including those that the run chose.

    Args:
        run: The run, after these numbers were written into its configuration.
        recipe: ``training`` or ``tuning``.
        source: The images. It declares how far they are cropped and whether they are mirrored.
        resolved: Numbers that the configuration leaves open.
    """
    content = run.plain(recipe)
    settings = {key: content[key] for key in _SETTINGS[recipe] if key in content}
    return {
        "optimizer": _part(run, recipe, "optimizer"),
        "scheduler": _part(run, recipe, "scheduler"),
        "scheduler_interval": content["scheduler_interval"],
        "max_epochs": content["max_epochs"],
        "batch_size": content["batch_size"],
        "augmentation": augmentation(run, recipe, source),
        **({"triggers": _triggers(content)} if recipe == "tuning" else {}),
        **settings,
        **resolved,
    }


def _triggers(recipe: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The sources of triggers by name, each with its arguments."""
    return {
        name: {key: value for key, value in source.items() if not key.startswith("_")}
        for name, source in (recipe.get("triggers") or {}).items()
    }


def _part(run: Run, recipe: str, part: str) -> dict[str, Any] | None:
    """The name of an optimizer or schedule, its class and its arguments."""
    config = OmegaConf.select(run.cfg, f"{recipe}.{part}")
    if config is None:
        return None
    plain: Any = OmegaConf.to_container(config, resolve=True)
    target = str(plain["_target_"])
    given = run.given(f"{recipe}.{part}._target_")
    choice = None if given else run.choices.get(f"{recipe}/{part}")
    arguments = {str(key): value for key, value in plain.items() if not str(key).startswith("_")}
    return {"name": choice or target.rpartition(".")[2], "class": target, **arguments}
