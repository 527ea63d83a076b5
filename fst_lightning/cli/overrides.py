"""Finds mistakes in command-line overrides, and names what would be valid."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterator, Sequence

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from fst_lightning.configuration import conf_folder, groups

_MOST_COMBINATIONS = 64


def check_overrides(task: str, arguments: Sequence[str]) -> str | None:
    """Compose what the command line asks for, and explain why it can't be composed.

    Args:
        task: ``train`` or ``purify``.
        arguments: of the command line.

    Returns:
        None where all is well or Hydra's own message is the better one; else one line that says
        what was found and what is valid.
    """
    options, _ = get_args_parser().parse_known_args(arguments)
    overrides: list[str] = options.overrides
    if options.help or options.config_dir or options.config_path or options.config_name:
        return None
    if any("hydra.searchpath" in override for override in overrides):
        return None  # Options from elsewhere: Hydra knows them, this check would not.
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        return f"{_first_line(error)} Overrides are written key=value, without spaces around =."
    for combination in _combinations(parsed):
        try:
            _compose(task, combination)
        except HydraException as error:
            return _explain(task, combination, error)
    return None


def _combinations(parsed: Sequence[Override]) -> Iterator[list[str]]:
    """The jobs of a sweep as plain overrides; of swept keys (not groups) one value is enough."""
    known = groups()
    choices: list[list[str]] = []
    for override in parsed:
        if override.is_sweep_override() and override.is_choice_sweep():
            values = list(override.sweep_string_iterator())
            prefix = override.input_line.split("=", 1)[0] if override.input_line else ""
            lines = [f"{prefix}={value}" for value in values]
            choices.append(lines if override.key_or_group in known else lines[:1])
        elif override.is_sweep_override():
            continue
        else:
            choices.append([override.input_line or ""])
    for combination in itertools.islice(itertools.product(*choices), _MOST_COMBINATIONS):
        yield list(combination)


def _compose(task: str, overrides: Sequence[str]) -> DictConfig:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose(config_name=task, overrides=list(overrides))


def _explain(task: str, overrides: Sequence[str], error: HydraException) -> str:
    text = str(error)
    missing_option = re.search(r"Could not find '([^']+)/([^'/]+)'", text)
    if missing_option:
        group, option = missing_option[1], missing_option[2]
        valid = groups().get(group, [])
        return f"{group}={option}: no such option.{_nearest(option, valid)} Valid: {_list(valid)}."
    missing_key = re.search(r"Could not override '([^']+)'", text)
    if not missing_key:
        return _first_line(error)
    key = missing_key[1].split("@")[0]
    chosen = [line for line in overrides if line.lstrip("+~").split("=")[0] in groups()]
    cfg = _compose(task, chosen)
    if "." not in key:
        keys = (str(name) for name in cfg if not OmegaConf.is_dict(cfg[name]))
        valid = sorted({*groups(), *keys})
        where = f"{key}: no such group or key"
    else:
        parent, known = _deepest(cfg, key)
        valid = sorted(known)
        where = f"{key}: no such key" + (f" in {parent}" if parent else "")
        chosen_option = _choice(chosen, parent)
        if chosen_option:
            where += f" ({parent}={chosen_option})"
    everything = [*valid, *_all_keys(cfg)]
    return (
        f"{where}.{_nearest(key, everything)} Valid: {_list(valid)}. (+{key}=... adds a new key.)"
    )


def _deepest(cfg: DictConfig, key: str) -> tuple[str, list[str]]:
    """The part of a dotted key that exists, and the keys that it holds."""
    node, path = cfg, []
    for part in key.split(".")[:-1]:
        if part not in node or not isinstance(node[part], DictConfig):
            break
        node = node[part]
        path.append(part)
    known = [str(name) for name in node if not str(name).startswith("_")]
    return ".".join(path), known or [str(name) for name in cfg]


def _choice(overrides: Sequence[str], group: str) -> str | None:
    for line in overrides:
        if line.startswith(f"{group}="):
            return line.split("=", 1)[1]
    return None


def _all_keys(node: DictConfig, prefix: str = "") -> list[str]:
    keys = []
    for name in map(str, node):
        keys.append(f"{prefix}{name}")
        if OmegaConf.is_dict(node) and not OmegaConf.is_missing(node, name):
            raw = node._get_node(name)
            if isinstance(raw, DictConfig) and not raw._is_none() and not raw._is_interpolation():
                keys += _all_keys(raw, f"{prefix}{name}.")
    return keys


def _nearest(word: str, valid: Sequence[str]) -> str:
    # tuning.lr is meant as tuning.optimizer.lr: the same last part, as alike as possible.
    same = [name for name in valid if name.split(".")[-1] == word.split(".")[-1]]
    close = difflib.get_close_matches(word, same, n=1, cutoff=0) or difflib.get_close_matches(
        word, valid, n=1, cutoff=0.7
    )
    return f" Did you mean {close[0]}?" if close else ""


def _list(words: Sequence[str]) -> str:
    return ", ".join(words) if words else "(nothing)"


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split("\n\n")[0].split())
