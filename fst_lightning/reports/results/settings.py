"""What tells the experiments of a sweep apart: everything but the seed."""

import math
from collections.abc import Mapping
from typing import Any

Setting = str | int | float | bool | None

_BLOCKS = ("attack", "defense", "data", "model")
# They follow from the choices. Where one of them is overridden, the override counts.
_NOT_CHOSEN = {
    "attack.control_rate",
    "attack.implanted",
    "attack.save_examples",  # of earlier versions
    "attack.trigger",
    "defense.auto",
    "defense.findings",
    "model.head",
    "model.num_parameters",
}
# Where a run writes, or what it says, does not change what it finds.
_PLUMBING = ("hydra.", "paths.", "report.", "logger.")
_IGNORED = {
    "seed",
    "debug",
    "resume",
    "retrain",
    "logger",
    "num_workers",
    "cuda_graphs",
    "val_images",
}


def settings_of(results: Mapping[str, Any]) -> dict[str, Setting]:
    """Name the choices behind a run's results, by the key that makes them.

    Takes the names and arguments in the blocks `attack`, `defense`, `data` and `model`, where a
    mapping `arguments` holds further arguments, and the overrides that say more. An argument
    listed in `defense.auto`, or overridden with `auto`, reads "auto", for the number that a run
    chose itself may differ from seed to seed.

    Args:
        results: the content of a results.json.

    Returns:
        Settings such as `{"task": "purify", "attack": "blended", "attack.poison_ratio": 0.05}`;
        runs with equal settings are repetitions of one experiment.
    """
    settings: dict[str, Setting] = {"task": results["task"]}
    for block in _BLOCKS:
        content = results[block] or {}
        chosen = {
            block if key == "name" else f"{block}.{key}": value for key, value in content.items()
        }
        arguments = chosen.pop(f"{block}.arguments", None)
        # Their own `name`, as a library's models have, is not the configuration's.
        if isinstance(arguments, Mapping):
            chosen |= {f"{block}.{key}": value for key, value in arguments.items()}
        for name, value in chosen.items():
            counted = name.startswith("data.num_") and name != "data.num_classes"
            if name not in _NOT_CHOSEN and not counted and value is not None:
                settings[name] = value if isinstance(value, str | int | float) else str(value)
        for key in content.get("auto", []) if block == "defense" else []:
            settings[f"defense.{key}"] = "auto"
    for name, value in override_settings(results.get("overrides", [])).items():
        if name not in settings or (value == "auto" and "." in name):
            settings[name] = value
    return settings


def override_settings(overrides: list[str]) -> dict[str, Setting]:
    """Read `key=value` overrides, without the seed and without where things are written.

    Example:
        >>> override_settings(["defense=fst", "defense.alpha=0.1", "seed=3", "paths.store=x"])
        {'defense': 'fst', 'defense.alpha': 0.1}
    """
    settings: dict[str, Setting] = {}
    for override in overrides:
        key, equals, value = override.lstrip("+~").partition("=")
        if key not in _IGNORED and not key.startswith(_PLUMBING):
            settings[key] = _parse(value) if equals else "removed"
    return settings


def _parse(text: str) -> Setting:
    """Read numbers as numbers, so that 0.10 and 1e-1 are one setting."""
    words: dict[str, Setting] = {"true": True, "false": False, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text
