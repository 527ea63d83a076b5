"""Where the YAML files are, and what can be chosen from them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

LEARNING_RATE = "tuning.optimizer.lr"
ALPHA = "defense.alpha"
AUTOMATIC = (LEARNING_RATE, ALPHA)
"""What a run chooses on clean images if it is ``auto``."""


def conf_folder() -> Path:
    """The folder of the YAML files: inside an installed package, beside it in a checkout.

    Raises:
        FileNotFoundError: If neither has it.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "purify.yaml").is_file():
            return folder
    raise FileNotFoundError(
        f"Expected the configuration in {package / 'conf'} or {package.parent / 'conf'}, but found "
        "it in neither; install the package again."
    )


def groups() -> dict[str, list[str]]:
    """The replaceable parts and their options, as folders and files of the configuration."""
    root = conf_folder()
    return {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in sorted(root.iterdir())
        if folder.is_dir() and folder.name != "hydra" and any(folder.glob("*.yaml"))
    }


def groups_of(task: str) -> list[str]:
    """The groups that a task chooses from, in the order of its defaults.

    Args:
        task: ``train`` or ``purify``.
    """
    unused, known = unused_groups(task), groups()
    return [name for name in _defaults(task) if name in known and name not in unused]


def unused_groups(task: str) -> list[str]:
    """The groups that a task has no use for, but that an experiment may choose from.

    Its defaults leave them empty: an experiment for both tasks chooses a defense, too.

    Args:
        task: ``train`` or ``purify``.

    Example:
        >>> "defense" in unused_groups("train"), unused_groups("purify")
        (True, [])
    """
    return [
        name for name, option in _defaults(task).items() if option is None and name != "experiment"
    ]


@functools.cache
def _defaults(task: str) -> dict[str, Any]:
    """Group and option of the entries in a task's list of defaults."""
    entries: Any = OmegaConf.to_container(OmegaConf.load(conf_folder() / f"{task}.yaml").defaults)
    return {
        str(name): option
        for entry in entries
        if isinstance(entry, dict)
        for name, option in entry.items()
    }
