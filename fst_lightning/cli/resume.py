"""A sweep that was stopped goes on where it was: with the same command and ``resume=true``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from fst_lightning.cli.flags import read_flags, sweeps
from fst_lightning.cli.ranks import is_main_process
from fst_lightning.text_files import read_text

_SWEEPS = "multirun"
_FOLDER = "hydra.sweep.dir"
_MOST_YAML = 1_000_000  # bytes; the parser is slow


def continued_sweep(task: str, arguments: Sequence[str]) -> list[str]:
    """The override that leads a resumed sweep to the folder of the one that was stopped.

    That is the newest sweep of the same overrides, ``resume`` left out. A folder of one's own
    (``hydra.sweep.dir=...``) is left alone, and a sweep that was never begun starts anew.

    Args:
        task: ``train`` or ``purify``.
        arguments: of the command line.

    Returns:
        Nothing, or one override.
    """
    overrides: list[str] = read_flags(arguments).overrides
    resumes = any(line.lower() in ("resume=true", "++resume=true") for line in overrides)
    if not (resumes and sweeps(arguments)):
        return []
    if any(line.lstrip("+").startswith(f"{_FOLDER}=") for line in overrides):
        return []
    wanted = _asked(overrides)
    for folder in sorted(Path(_SWEEPS, task).glob("*/multirun.yaml"), reverse=True):
        if _asked(_overrides_of(folder)) == wanted:
            return [f"{_FOLDER}={folder.parent}"]
    if is_main_process():
        looked = Path(_SWEEPS, task).absolute()
        print(f"resume: no sweep of the same overrides in {looked}, so it starts anew", flush=True)
    return []


def check_folder(arguments: Sequence[str]) -> str | None:
    """Explain why processes that were started together need a folder that they are told.

    Args:
        arguments: of the command line.
    """
    overrides: list[str] = read_flags(arguments).overrides
    told = any(line.lstrip("+").startswith(f"{_FOLDER}=") for line in overrides)
    if told or not sweeps(arguments):
        return None
    return (
        f"{_FOLDER}: not given. Each of several processes would name the sweep's folder by its own "
        f"clock; say {_FOLDER}=FOLDER. (Started once, the jobs of a sweep start the processes "
        "for trainer.devices themselves.)"
    )


def is_finished(cfg: DictConfig, folder: Path) -> bool:
    """Whether a run of this very configuration has left its results in the folder.

    Args:
        cfg: the composed configuration.
        folder: of the run.
    """
    try:
        results = json.loads(read_text(folder / "results.json"))
        before = _load(folder / "config.yaml")
    except Exception:  # A damaged file counts as none, however the parser ends.
        return False
    now = OmegaConf.to_container(cfg, resolve=True)
    return isinstance(results, dict) and _settings(before) == _settings(now)


def _asked(overrides: Sequence[str]) -> list[str]:
    """What was asked for, in any order; how it is run does not matter."""
    ignored = (
        *("resume", "debug", "hydra.mode", "hydra/launcher", "hydra.launcher", _FOLDER),
        *("hydra.sweeper.n_trials", "hydra.sweeper.n_jobs"),
    )
    return sorted(line for line in overrides if not line.lstrip("+").startswith(ignored))


def _overrides_of(file: Path) -> list[str]:
    try:
        saved = _load(file)["hydra"]["overrides"]
        return [str(line) for name in ("task", "hydra") for line in saved.get(name) or []]
    except Exception:  # A damaged file counts as none, however the parser ends.
        return []


def _load(file: Path) -> Any:
    text = read_text(file, _MOST_YAML)
    # What a run writes has no aliases; ten lines of them can stand for 10^10 values.
    if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
        raise ValueError(f"{file} is not as a run has written it.")
    return OmegaConf.to_container(OmegaConf.create(text))  # nothing in it is evaluated


def _settings(config: Any) -> Any:
    if not isinstance(config, dict):
        return config
    return {name: value for name, value in config.items() if name not in ("resume", "debug")}
