"""Where the YAML files are, and what can be chosen from them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

LEARNING_RATE = "tuning.optimizer.lr"
ALPHA = "defense.alpha"
AUTOMATIC = (LEARNING_RATE, ALPHA)
"""What a run chooses on clean images if it is ``auto``."""

RENAMED = {
    "attack.save_examples": "report.examples",
    "defense.unlabelled_weight": "defense.unlabeled_weight",
    "model.compile": "training.compile",
    "report.inversion": "detector=[nc]",
}
"""Keys of earlier versions, and what took their place."""

_NOT_CHOSEN = ("hydra", "recipe")


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
    """The replaceable parts and their options, as folders and files of the configuration.

    Recipes are left out: the data, the defense and the optimizer choose them. Every call returns
    the same dictionary, so do not change it.

    Example:
        >>> groups()["tuning/optimizer"]
        ['adam', 'adamw', 'rmsprop', 'sgd']
    """
    return _groups(conf_folder())


@functools.cache
def _groups(root: Path) -> dict[str, list[str]]:
    folders = (file.parent.relative_to(root) for file in root.glob("*/**/*.yaml"))
    return {
        folder.as_posix(): sorted(file.stem for file in (root / folder).glob("*.yaml"))
        for folder in sorted(set(folders))
        if folder.parts[0] not in _NOT_CHOSEN
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


def drop_unused(cfg: DictConfig) -> None:
    """Remove the groups that the task of a configuration has no use for.

    A recipe or an experiment, which serves several tasks, may have filled them.

    Args:
        cfg: The composed configuration. It is changed in place.
    """
    with open_dict(cfg):
        for group in unused_groups(cfg.task):
            cfg.pop(group, None)


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
