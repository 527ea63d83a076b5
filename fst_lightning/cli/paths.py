"""Lets files and folders on a command line have the names that they have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from fst_lightning.cli.flags import sweeps

_KEYS = (
    *("checkpoint", "resume", "export", "detector_reference"),
    *("paths.data", "paths.store", "paths.outputs"),
)
_LAST = ("root", "triggered_root", "cache_folder", "image", "folder", "dir", "subdir", "reference")
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


def complete_paths(cfg: DictConfig, start: Path | None = None, prefix: str = "") -> None:
    """Replace ``~`` at the start of every path in a configuration, in place.

    Args:
        cfg: the configuration, or a part of it.
        start: the folder that relative paths start at, if it is no longer the current one.
        prefix: the key of the part, with a dot at its end.
    """
    for name in map(str, cfg):
        if OmegaConf.is_missing(cfg, name):
            continue
        node: Any = cfg._get_node(name)
        if isinstance(node, DictConfig):
            if not (node._is_none() or node._is_interpolation()):
                complete_paths(node, start, f"{prefix}{name}.")
        elif is_path(f"{prefix}{name}"):
            value = OmegaConf.select(cfg, name, throw_on_resolution_failure=False)
            if isinstance(value, str) and value:
                path = _expanded(value)
                path = path if start is None else str(start / path)
                if path != value:
                    cfg[name] = path


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
