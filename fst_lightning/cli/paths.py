"""Lets files and folders on a command line have the names that they have."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

from fst_lightning.cli.flags import sweeps

_KEYS = (
    *("checkpoint", "resume", "export", "detector_reference"),
    *("paths.data", "paths.store", "paths.outputs"),
)
_LAST = (
    *("root", "triggered_root", "cache_folder", "image", "folder"),
    *("dir", "subdir", "save_dir", "reference"),
)
"""Last parts of keys that name a file or folder, wherever they stand."""

_NAMES = ("model.head", "defense.head", "checkpoint_key", "fail_on")
"""Keys of text that is no path: a part of a network may be called by a number."""


def is_path(key: str) -> bool:
    """Whether a key names a file or folder.

    Example:
        >>> is_path("data.root"), is_path("hydra.run.dir"), is_path("resume"), is_path("seed")
        (True, True, True, False)
    """
    return key in _KEYS or ("." in key and key.rpartition(".")[2] in _LAST)


def with_quoted_paths(arguments: Sequence[str]) -> list[str]:
    """Expand ``~``, and quote the paths that Hydra could not read, or not as text.

    Hydra's grammar gives a meaning to ``=``, ``(``, ``[``, ``{``, ``'``, ``~``, ``:`` and letters
    beyond ASCII, all of which names of files have. What is in quotes already stays as it is.

    Args:
        arguments: of the command line.

    Example:
        >>> with_quoted_paths(["checkpoint=epoch=9-step=100.ckpt", "data.root=photos", "seed=1"])
        ["checkpoint='epoch=9-step=100.ckpt'", 'data.root=photos', 'seed=1']
    """
    several = sweeps(arguments)
    return [_readable(argument, several) for argument in arguments]


def complete_paths(cfg: DictConfig, start: Path | None = None) -> None:
    """Replace ``~`` at the start of every path in a configuration, in place.

    Args:
        cfg: The configuration.
        start: The folder at which relative paths start, if it is no longer the current one.
    """
    for part, name, value in _paths(cfg):
        path = _expanded(value)
        path = path if start is None else str(start / path)
        if path != value:
            part[name] = path


def names_relative_path(message: str, cfg: DictConfig) -> bool:
    """Whether a message names a relative path of a configuration.

    Example:
        >>> cfg = OmegaConf.create({"data": {"root": "photos"}, "checkpoint": "/a/b.pt"})
        >>> names_relative_path("photos: there is no such folder", cfg)
        True
        >>> names_relative_path("/a/b.pt: there is no such file", cfg)
        False
    """
    paths = [value for _, _, value in _paths(cfg) if not Path(value).is_absolute()]
    return any(re.search(rf"(?<![\w./]){re.escape(path)}(?![\w.])", message) for path in paths)


class HomeFolders(Callback):
    """Replaces ``~`` in the folder of a run or sweep, before Hydra makes the folder.

    Hydra takes ``hydra.run.dir`` and ``hydra.sweep.dir`` as they stand in a YAML file or an
    environment variable, and would make a folder of the name ``~``.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Replace it in ``hydra.run.dir``."""
        _expand_folder(config.hydra.run)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Replace it in ``hydra.sweep.dir``, and in that of each job."""
        if _expand_folder(config.hydra.sweep):
            # Hydra composes each job from these overrides.
            with read_write(config.hydra.overrides):
                folder = _quoted(config.hydra.sweep.dir)
                config.hydra.overrides.hydra.append(f"hydra.sweep.dir={folder}")


def _expand_folder(part: DictConfig) -> bool:
    try:
        folder = str(part.dir)
    except OmegaConfBaseException:  # Hydra explains a reference that leads nowhere.
        return False
    expanded = _expanded(folder)
    if expanded == folder:
        return False
    with read_write(part):
        part.dir = expanded
    return True


def relative_paths(overrides: Sequence[str]) -> list[str]:
    """The overrides that name a file or folder relative to the current folder.

    Example:
        >>> relative_paths(["data.root=photos", "checkpoint=/a/b.pt", "seed=1"])
        ['data.root=photos']
    """
    pairs = ((line, *line.lstrip("+").partition("=")[::2]) for line in overrides)
    return [
        line
        for line, key, text in pairs
        if is_path(key) and text and not Path(_expanded(text.strip("'\""))).is_absolute()
    ]


def _paths(cfg: DictConfig, prefix: str = "") -> Iterator[tuple[DictConfig, str, str]]:
    """Every path in a configuration: the part that holds it, its name there, and the path."""
    for name in map(str, cfg):
        if OmegaConf.is_missing(cfg, name):
            continue
        node: Any = cfg._get_node(name)
        if isinstance(node, DictConfig):
            if not (node._is_none() or node._is_interpolation()):
                yield from _paths(node, f"{prefix}{name}.")
        elif is_path(f"{prefix}{name}"):
            value = OmegaConf.select(cfg, name, throw_on_resolution_failure=False)
            if isinstance(value, str) and value:
                yield cfg, name, value


def _readable(argument: str, several: bool) -> str:
    key, equals, text = argument.partition("=")
    named = key.lstrip("+") in _NAMES
    if not equals or not text or not (named or is_path(key.lstrip("+"))):
        return argument
    override = _parsed(argument)
    value = None if override is None else override.value()
    if named:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return f"{key}={_quoted(text)}" if whole or override is None else argument
    if isinstance(value, str):
        return f"{key}={_quoted(_expanded(value))}" if value.startswith("~") else argument
    if isinstance(value, int | float | list | dict) and not isinstance(value, bool):
        return f"{key}={_quoted(text)}"
    if override is not None and override.is_sweep_override() and not several:
        # One job has one path: a comma is part of its name, if there is such a file.
        return f"{key}={_quoted(text)}" if Path(text).exists() else argument
    if override is None:
        if several and "," in text:
            parts = [_readable(f"{key}={part}", several=False) for part in text.split(",")]
            return f"{key}={','.join(part.partition('=')[2] for part in parts)}"
        return f"{key}={_quoted(_expanded(text))}"
    return argument


def _parsed(argument: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:
        return None


def _expanded(path: str) -> str:
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:  # There is no such user: a file may still be called so.
        return path


def _quoted(text: str) -> str:
    r"""Write a text as Hydra reads it back: in quotes, in which ``'`` has a backslash.

    Example:
        >>> _quoted("it's.pth")
        "'it\\'s.pth'"
    """
    # Of backslashes Hydra reads those in front of a quote, or at the end, as pairs.
    escaped, run = "", 0
    for letter in [*text, ""]:
        if letter == "\\":
            run += 1
            continue
        escaped += "\\" * (2 * run if letter in ("'", "") else run)
        escaped += "\\'" if letter == "'" else letter
        run = 0
    return f"'{escaped}'"
