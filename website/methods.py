"""Pages about methods: one for every attack, defense and detector."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import yaml

from fst_lightning.configuration import groups
from website.docstrings import (
    Method,
    read_method,
    to_markdown,
    with_fences,
    with_paper_links,
)
from website.options import Key, heading_of, key_table, keys_of, option_file

Group = Literal["attack", "defense", "detector"]
GROUPS: Mapping[Group, str] = {
    "attack": "Attacks",
    "defense": "Defenses",
    "detector": "Detectors",
}
_COMMANDS: Mapping[Group, str] = {
    "attack": "python train.py attack={}",
    "defense": "python purify.py attack=blended defense={}",
    "detector": "python detect.py checkpoint=FILE 'detector=[{}]'",
}
_GUIDES: Mapping[Group, str] = {
    "attack": "[Attacks](../../attacks.md) compares all attacks.",
    "defense": "[Choosing a defense](../../choosing.md) compares all defenses.",
    "detector": "[Is this network backdoored?](../../detection.md) compares all detectors.",
}
_SHOWN_ELSEWHERE = ("Args", "Raises", "Example", "Examples", "References", "See Also")
LONGEST_TITLE = 80


def target_of(group: Group, option: str) -> str:
    """The dotted name of the class behind an option.

    Example:
        >>> target_of("detector", "nc")
        'fst_lightning.detectors.SmallestPatch'
    """
    values = yaml.safe_load(option_file(group, option).read_text(encoding="utf-8"))
    target: str = (values if "_target_" in values else values[option])["_target_"]
    return target


def title_of(method: Method, option: str) -> str:
    """The full name of a method: what its file says before the first colon.

    Example:
        >>> title_of(read_method("fst_lightning.defenses.ChannelLipschitzPruning"), "clp")
        'Channel Lipschitzness pruning (CLP)'
    """
    name, colon, _ = method.module.summary.partition(": ")
    return name if colon and len(name) <= LONGEST_TITLE else option.replace("_", " ").capitalize()


def method_page(group: Group, option: str) -> str:
    """The page of a method, in Markdown.

    Args:
        group: ``attack``, ``defense`` or ``detector``.
        option: Its name on the command line.
    """
    method = read_method(target_of(group, option))
    docstring = method.docstring
    lines = [f"# {title_of(method, option)}", "", f"`{group}={option}`", ""]
    lines += [_prose(docstring.summary), ""]
    if method.module.text:
        lines += [with_paper_links(to_markdown(method.module.text)), ""]
    if docstring.text:
        text = docstring.text.removeprefix("*How it works.* ")
        lines += ["## How it works", "", _prose(text), ""]
    lines += ["## Command", "", f"```\n{_command(group, option, method)}\n```", ""]
    lines += ["## Arguments", "", key_table(_keys(group, option)), ""]
    for name, text in docstring.sections.items():
        if name not in _SHOWN_ELSEWHERE:
            title = "Limits and departures" if name in ("Note", "Notes") else name
            lines += [f"## {title}", "", _prose(text), ""]
    example = docstring.sections.get("Example") or docstring.sections.get("Examples")
    if example:
        lines += ["## In Python", "", "```python", f"{_import(method)}", "```", ""]
        lines += [with_fences(example), ""]
    if "References" in docstring.sections:
        lines += ["## References", "", _prose(docstring.sections["References"]), ""]
    lines += ["## See also", ""]
    if "See Also" in docstring.sections:
        lines += [_prose(docstring.sections["See Also"]), ""]
    lines += [f"{_GUIDES[group]} {_api_link(method)} has the class.", ""]
    return "\n".join(lines)


def method_pages() -> dict[str, str]:
    """The pages of all methods and a list for each kind, by path below ``docs``."""
    pages = {}
    known = groups()
    for group in GROUPS:
        for option in known[group]:
            pages[f"methods/{group}/{option}.md"] = method_page(group, option)
        pages[f"methods/{group}/index.md"] = _list_page(group, known[group])
    return pages


def _list_page(group: Group, options: list[str]) -> str:
    lines = [f"# {GROUPS[group]}", "", _GUIDES[group], ""]
    lines += [f"| `{group}=` | full name | what it does |", "|---|---|---|"]
    for option in options:
        method = read_method(target_of(group, option))
        summary = to_markdown(method.docstring.summary).replace("|", "\\|")
        lines.append(f"| [`{option}`]({option}.md) | {title_of(method, option)} | {summary} |")
    return "\n".join(lines) + "\n"


def _keys(group: Group, option: str) -> list[Key]:
    return keys_of(option_file(group, option), group)


def _command(group: Group, option: str, method: Method) -> str:
    """The command that the file of the method gives, or the plainest one."""
    shown = re.search(r"``([^`]*\.py [^`]*)``", method.module.sections.get("Example", ""))
    _, _, command = heading_of(option_file(group, option)).partition("  ")
    return (shown[1] if shown else command.strip()) or _COMMANDS[group].format(option)


def _prose(text: str) -> str:
    return with_paper_links(with_fences(to_markdown(text)))


def _import(method: Method) -> str:
    module, _, name = method.name.rpartition(".")
    return f"from {module.rpartition('.')[0]} import {name}"


def _api_link(method: Method) -> str:
    package = method.name.split(".")[1]
    name = method.name.rpartition(".")[2]
    return f"[`{name}`](../../reference/api/{package}.md)"
