"""Pages about the options of the configuration: every group and every key."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fst_lightning.annotations import argument_meanings
from fst_lightning.cli.meanings import key_comments
from fst_lightning.configuration import conf_folder, groups
from website.docstrings import to_markdown

TASKS = ("purify", "train", "detect")
_TITLES = {
    "attack": "How the training set is poisoned.",
    "callbacks": "Lightning callbacks.",
    "data": "Where images come from.",
    "defense": "How a network is purified.",
    "detector": "How a network is scanned for a backdoor.",
    "experiment": "Named combinations of options.",
    "logger": "Where curves and figures go.",
    "model": "The network.",
    "paths": "Folders.",
    "robustness": "Attacks on a purified network.",
    "trainer": "Devices and precision.",
    "training": "The recipe of the backdoored network.",
    "training/optimizer": "The optimizer of that recipe.",
    "tuning": "The recipe of a defense.",
    "tuning/optimizer": "The optimizer of that recipe.",
}
_KEEP = re.compile(r"(`[^`]*`|<autoref[^>]*>|</?code>|</autoref>|<br>)")
_METHODS = ("attack", "defense", "detector")


class Key(NamedTuple):
    """A key of an option.

    Attributes:
        name: Its dotted name on the command line.
        default: Its value in the YAML file, as YAML.
        meaning: What it does, as Markdown.
    """

    name: str
    default: str
    meaning: str


def option_file(group: str, option: str) -> Path:
    """The YAML file of an option."""
    return conf_folder() / group / f"{option}.yaml"


def keys_of(file: Path, prefix: str) -> list[Key]:
    """The keys of a YAML file, with their comments and the docstrings of the arguments they set.

    Args:
        file: The YAML file.
        prefix: What stands before its keys on the command line, such as ``defense``.

    Example:
        >>> key = keys_of(option_file("defense", "fst"), "defense")[1]
        >>> key.name, key.default
        ('defense.reinit', '`orthogonal`')
    """
    values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    comments = key_comments(file)
    return [
        Key(
            ".".join(filter(None, (prefix, name))),
            _shown(value),
            _meaning(comments.get(name, ""), documented),
        )
        for name, value, documented in _flat(values)
    ]


def heading_of(file: Path) -> str:
    """The comment at the head of a YAML file."""
    return key_comments(file)[""]


def key_table(keys: list[Key]) -> str:
    """A table of keys in Markdown."""
    if not keys:
        return "It has no keys.\n"
    lines = ["| key | default | meaning |", "|---|---|---|"]
    lines += [f"| `{key.name}` | {key.default} | {_cell(key.meaning)} |" for key in keys]
    return "\n".join(lines) + "\n"


def option_pages() -> dict[str, str]:
    """The reference of the configuration, by path below ``docs``."""
    known = groups()
    pages = {f"reference/options/{group}.md": _group_page(group, known[group]) for group in known}
    pages["reference/options/recipe.md"] = _recipe_page()
    pages["reference/options/index.md"] = _index(list(known))
    return pages


def _index(known: list[str]) -> str:
    lines = [
        "# Options",
        "",
        "A command is a list of `group=option` and `key=value`. This page lists the groups, and "
        "the keys that belong to no group. Each group has a page with its options and keys. The "
        "[recipes](recipe.md) set keys for certain choices.",
        "",
        "| group | what it chooses |",
        "|---|---|",
        *(f"| [`{group}`]({group}.md) | {_TITLES.get(group, '')} |" for group in known),
        "",
    ]
    for task in TASKS:
        file = conf_folder() / f"{task}.yaml"
        lines += [f"## `{task}.py`", "", f"{heading_of(file)}", "", key_table(keys_of(file, ""))]
    return "\n".join(lines)


def _group_page(group: str, options: list[str]) -> str:
    lines = [f"# `{group}`", "", _TITLES.get(group, ""), ""]
    if group in _METHODS:
        methods = "the page of each method has its keys"
        lines += [f"Choose one with `{group}=NAME`; {methods}.", "", "| option | what it is |"]
        lines += ["|---|---|"]
        for option in options:
            link = f"../../methods/{group}/{option}.md"
            lines.append(f"| [`{option}`]({link}) | {_sentence(option_file(group, option))} |")
        return "\n".join(lines) + "\n"
    for option in options:
        file = option_file(group, option)
        prefix = "" if group == "experiment" else group.replace("/", ".")
        lines += [
            f"## `{group}={option}`",
            "",
            _sentence(file),
            "",
            key_table(keys_of(file, prefix)),
        ]
    return "\n".join(lines)


def _recipe_page() -> str:
    lines = [
        "# Recipes",
        "",
        "A recipe sets the keys that suit certain choices. It is merged if all of them are chosen; "
        "the command line wins over it.",
        "",
    ]
    for folder in sorted(path for path in (conf_folder() / "recipe").iterdir() if path.is_dir()):
        lines += [f"## By {folder.name.replace('_', ', ')}", ""]
        for file in sorted(folder.glob("*.yaml")):
            lines += [f"### `{file.stem}`", "", _sentence(file), "", key_table(keys_of(file, ""))]
    return "\n".join(lines)


def _sentence(file: Path) -> str:
    """The comment at the head of a file, with its command as code."""
    says, gap, command = heading_of(file).partition("  ")
    text = says.strip()
    if gap and command.strip():
        text += f" `{command.strip()}`"
    return text.replace("|", "\\|")


def _flat(
    values: Mapping[str, Any], prefix: str = "", inherited: Mapping[str, str] | None = None
) -> Iterator[tuple[str, Any, str]]:
    target = values.get("_target_", "")
    documented = argument_meanings(target) if target else dict(inherited or {})
    for name, value in values.items():
        if name in ("_target_", "_partial_", "_convert_", "defaults"):
            continue
        path = f"{prefix}{name}"
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{path}.")
        else:
            yield path, value, documented.get(name, "")


def _meaning(comment: str, documented: str) -> str:
    """What the docstring says, and the comment in the file if only that one names ``auto``."""
    if not documented:
        return comment
    adds = "auto" in comment and "auto" not in documented
    return to_markdown(documented) + (f"<br>In a configuration: {comment}" if adds else "")


def _shown(value: Any) -> str:
    if value == "???":
        return "required"
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6).replace("\n...", "")
    return f"`{text.strip()}`"


def _cell(text: str) -> str:
    """Escape what would end a cell, or start a tag, outside of code."""
    parts = _KEEP.split(text)
    parts[::2] = [part.replace("|", "\\|").replace("<", "&lt;") for part in parts[::2]]
    return "".join(parts)
