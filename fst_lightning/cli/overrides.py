"""Finds mistakes in command-line overrides, and names what would be valid."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterator, Sequence

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fst_lightning.cli.composition import composed, without_values
from fst_lightning.cli.flags import read_flags, sweeps
from fst_lightning.cli.values import check_values
from fst_lightning.configuration import RENAMED, conf_folder, groups, groups_of, unused_groups

_MOST_COMBINATIONS = 64
_DISPENSABLE = ("callbacks", "logger", "robustness", "detector", "tuning/triggers", "experiment")


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
        options = read_flags(arguments)
    except ValueError as error:
        return str(error)
    overrides: list[str] = options.overrides
    if options.config_dir or options.config_path or options.config_name:
        return None
    if options.help or any("hydra.searchpath" in override for override in overrides):
        return None  # Options from elsewhere: Hydra knows them, this check would not.
    if options.shell_completion:
        return None  # What is typed so far need not be right.
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        parsed: list[Override] = []
        for override in overrides:
            problem = _check_override(task, override, parsed)
            if problem is not None:
                return problem
        if not sweeps(arguments):
            problem = _check_single(task, parsed)
            if problem is not None:
                return problem
        for combination in _combinations(parsed):
            try:
                cfg = composed(task, combination)
            except (HydraException, OmegaConfBaseException, ValueError) as error:
                return _explain(task, combination, error)
            problem = check_values(parsed, cfg, without_values(task, combination))
            if problem is not None:
                return problem
            if options.package is not None:
                return _check_package(cfg, options.package)
    return None


def _check_override(task: str, override: str, parsed: list[Override]) -> str | None:
    """What is wrong with an override as such; one that is right is added to the parsed ones."""
    loader = GlobalHydra.instance().config_loader()  # lists the options that a glob matches
    try:
        (found,) = OverridesParser.create(config_loader=loader).parse_overrides([override])
    except HydraException:
        return (
            f"{override}: can't be read. Overrides are written key=value, without spaces "
            "around =; a value with spaces, brackets, quotes or letters beyond ASCII goes in "
            """two pairs of quotes: 'key="a value"'."""
        )
    group, option, known = found.key_or_group, found.value(), groups()
    if not group:
        return f"{override}: a key is missing. Overrides are written key=value."
    if group in RENAMED:
        return f"{override}: expected `{group}` under its new name, which is `{RENAMED[group]}`."
    if group.partition(".")[0] in unused_groups(task):
        valid = _list(groups_of(task))
        return (
            f"{group}: no such group or key for {task}.py, which has no use for it; purify.py "
            f"has. Valid: {valid}."
        )
    if (folder := group.replace(".", "/")) != group and folder in known:
        return f"{override}: an option is chosen with {folder}=, one of {_list(known[folder])}."
    missing = option is None or found.is_delete()
    if missing and group in known and group not in _DISPENSABLE:
        return f"{override}: `{group}` is needed. Valid: {_list(known[group])}."
    if option is None and group in known and not found.is_delete():
        return f"{override}: one option is needed; ~{group} leaves the group empty."
    if isinstance(option, list | dict) and group in known and group not in _DISPENSABLE:
        return f"{override}: one option is needed. Valid: {_list(known[group])}."
    if found.is_discrete_sweep() and not list(found.sweep_string_iterator()):
        valid = f" Valid: {_list(known[group])}." if group in known else ""
        return f"{override}: there is nothing to sweep over.{valid}"
    parsed.append(found)
    return None


def _check_single(task: str, parsed: Sequence[Override]) -> str | None:
    """Several values at once, where no sweep was asked for."""
    swept = [str(override.input_line) for override in parsed if override.is_sweep_override()]
    if not swept:
        return None
    plain = [str(override.input_line) for override in parsed if not override.is_sweep_override()]
    try:
        cfg = composed(task, plain)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        return _explain(task, plain, error)
    if cfg.hydra.mode == RunMode.MULTIRUN:
        return None
    return (
        f"{swept[0]}: several values at once are a sweep, which -m starts: python "
        f"{task}.py -m ... (A list is written [a,b]; a comma in a text 'key=\"a,b\"'.)"
    )


def _check_package(cfg: DictConfig, package: str) -> str | None:
    if package == "_global_":
        return None
    try:
        if OmegaConf.select(cfg, package) is not None:
            return None
    except OmegaConfBaseException:
        pass
    parts = [str(name) for name in cfg if OmegaConf.is_config(cfg._get_node(name))]
    return f"--package={package}: no such part.{_nearest(package, parts)} Valid: {_list(parts)}."


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
    try:
        known_keys = without_values(task, chosen)
    except (HydraException, OmegaConfBaseException, ValueError):
        return _first_line(error)
    cfg = OmegaConf.masked_copy(known_keys, [str(name) for name in known_keys if name != "hydra"])
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
    if isinstance(error.__cause__, OmegaConfBaseException):
        text = f"{text}: {str(error.__cause__).splitlines()[0]}"
    return " ".join(text.split())
