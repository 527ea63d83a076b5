"""Finds mistakes in command-line overrides, and names what would be valid."""

from __future__ import annotations

import contextlib
import difflib
import io
import itertools
import re
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from fst_lightning.configuration import conf_folder, groups, groups_of

_MOST_COMBINATIONS = 64
_DISPENSABLE = ("callbacks", "logger", "robustness", "experiment")


def check_overrides(task: str, arguments: Sequence[str]) -> str | None:
    """Compose what the command line asks for, and explain why it can't be composed.

    Args:
        task: ``train`` or ``purify``.
        arguments: of the command line.

    Returns:
        None where all is well or Hydra's own message is the better one; else one line that says
        what was found and what is valid.
    """
    try:
        with contextlib.redirect_stderr(io.StringIO()) as said:
            options, unknown = get_args_parser().parse_known_args(arguments)
    except SystemExit as stop:
        if not stop.code:
            raise
        return f"{said.getvalue().rpartition('error: ')[2].strip()}; see --help."
    overrides: list[str] = options.overrides
    if unknown:
        found = " ".join(unknown)
        return f"{found}: not understood. Flags such as -m stand before or after all key=value."
    if options.resolve and not (options.cfg or options.help):
        return "--resolve: it goes with --cfg job, which prints the configuration."
    if options.config_dir or options.config_path or options.config_name:
        return _check_other_configuration(options)
    if options.help or any("hydra.searchpath" in override for override in overrides):
        return None  # Options from elsewhere: Hydra knows them, this check would not.
    known = groups()
    parsed = []
    for override in overrides:
        try:
            parsed.append(OverridesParser.create().parse_override(override))
        except HydraException:
            return (
                f"{override}: can't be read. Overrides are written key=value, without spaces "
                "around =; a value with spaces, brackets, quotes or letters beyond ASCII goes in "
                """two pairs of quotes: 'key="a value"'."""
            )
        if not parsed[-1].key_or_group:
            return f"{override}: a key is missing. Overrides are written key=value."
        group, option = parsed[-1].key_or_group, parsed[-1].value()
        missing = option is None or parsed[-1].is_delete()
        if missing and group in known and group not in _DISPENSABLE:
            return f"{override}: `{group}` is needed. Valid: {_list(known[group])}."
        if isinstance(option, list | dict) and group in known and group not in _DISPENSABLE:
            return f"{override}: one option is needed. Valid: {_list(known[group])}."
        if parsed[-1].is_sweep_override() and not options.multirun:
            return (
                f"{override}: several values at once are a sweep, which -m starts: python "
                f"{task}.py -m ... (A list is written [a,b]; a comma in a text 'key=\"a,b\"'.)"
            )
    for combination in _combinations(parsed):
        try:
            _compose(task, combination)
        except (HydraException, ValueError) as error:
            return _explain(task, combination, error)
    return None


def _check_other_configuration(options: Namespace) -> str | None:
    """What is wrong with where another configuration is said to be."""
    for name in ("config_dir", "config_path"):
        folder = getattr(options, name)
        if folder and "://" not in folder and not Path(folder).is_dir():
            return f"--{name.replace('_', '-')}={folder}: there is no such folder."
    file = options.config_name
    if file and not (options.config_dir or options.config_path):
        known = sorted(path.stem for path in conf_folder().glob("*.yaml"))
        if file.removesuffix(".yaml") not in known:
            return (
                f"--config-name={file}: no such file. Valid: {_list(known)}; or say --config-dir."
            )
    return None


def _combinations(parsed: Sequence[Override]) -> Iterator[list[str]]:
    """The jobs of a sweep as plain overrides; of swept keys (not groups) one value is enough."""
    known = groups()
    choices: list[list[str]] = []
    for override in parsed:
        if override.is_discrete_sweep():
            prefix = (override.input_line or "").split("=", 1)[0]
            lines = [f"{prefix}={value}" for value in override.sweep_string_iterator()]
            choices.append(lines if override.key_or_group in known else lines[:1])
        elif not override.is_sweep_override():
            choices.append([override.input_line or ""])
    for combination in itertools.islice(itertools.product(*choices), _MOST_COMBINATIONS):
        yield list(combination)


def _compose(task: str, overrides: Sequence[str]) -> DictConfig:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose(task, list(overrides))


def _explain(task: str, overrides: Sequence[str], error: Exception) -> str:
    known = groups()
    own = groups_of(task)
    given = dict(line.lstrip("+~").partition("=")[::2] for line in overrides)
    for group in own:
        # A group may take a list of options.
        for option in map(str.strip, given.get(group, "null").strip("[]").split(",")):
            # Something else than Hydra objects to an option that is a number.
            meant = f"'{group}/{option}'" in str(error) or not isinstance(error, HydraException)
            if meant and option not in (*known[group], "null", ""):
                nearest = _nearest(option, known[group])
                return f"{group}={option}: no such option.{nearest} Valid: {_list(known[group])}."
    missing = re.search(r"Could not override '([^'@]+)", str(error))
    if not missing or missing[1] not in given:
        return _first_line(error)
    key = missing[1]
    chosen = [f"{group}={given[group]}" for group in own if group in given]
    cfg = _compose(task, chosen)
    if "." not in key:
        keys = (str(name) for name in cfg if not OmegaConf.is_dict(cfg[name]))
        valid = sorted({*own, *keys})
        where = f"{key}: no such group or key"
    else:
        parent, below = _deepest(cfg, key)
        valid = sorted(below)
        where = f"{key}: no such key" + (f" in {parent}" if parent else "")
        if parent in given:
            where += f" ({parent}={given[parent]})"
    nearest = _nearest(key, [*valid, *_all_keys(cfg)])
    return f"{where}.{nearest} Valid: {_list(valid)}. (+{key}=... adds a new key.)"


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
    if word not in valid and word.lower() in valid:
        return f" Did you mean {word.lower()}?"
    # tuning.lr is meant as tuning.optimizer.lr: the same last part, as alike as possible.
    first, _, last = word.rpartition(".")
    first = first.split(".")[0]
    same = [
        name
        for name in valid
        if name.split(".")[-1] == last and (not first or name.split(".")[0] == first)
    ]
    close = difflib.get_close_matches(word, same, n=1, cutoff=0) or difflib.get_close_matches(
        word, valid, n=1, cutoff=0.6
    )
    return f" Did you mean {close[0]}?" if close else ""


def _list(words: Sequence[str]) -> str:
    return ", ".join(words) if words else "(nothing)"


def _first_line(error: Exception) -> str:
    text = str(error).split("\n\n")[0].split("See https://")[0]
    return " ".join(text.split())
