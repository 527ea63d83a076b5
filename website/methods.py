"""Pages about methods: one for every attack, defense and detector."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
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
_PAGES: Mapping[Group, tuple[str, ...]] = {
    "attack": ("attacks.md",),
    "defense": ("auto.md", "defenses.md", "training_set.md"),
    "detector": ("detection.md",),
}
"""The pages with measured figures of a group, whose tables name its options."""
SECTIONS = {
    "Needs": "What it needs",
    "Cost": "Cost",
    "When it fails": "When it fails",
    "Note": "Limits and departures",
    "Shape": "Shape",
}
"""The sections of a docstring that a page shows under a heading, in order."""
LONGEST_TITLE = 80
DOCS = Path(__file__).parents[1] / "docs"


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
    words, formula = _words_and_formula(docstring.text)
    lines = [f"# {title_of(method, option)}", "", f"`{group}={option}`", ""]
    lines += [_prose(docstring.summary), ""]
    lines += ["## Paper", "", _prose(docstring.sections["References"]), ""]
    lines += ["## How it works", "", _prose(words), ""]
    lines += ["## Formula", "", _prose(formula), ""]
    lines += ["## Command", "", f"```\n{_command(group, option, method)}\n```", ""]
    lines += ["## Arguments", "", key_table(_keys(group, option)), ""]
    for name, title in SECTIONS.items():
        lines += [f"## {title}", "", _prose(docstring.sections[name]), ""]
        if name == "Cost":
            lines += [_measured(group, option), ""]
    lines += ["## In Python", "", "```python", f"{_import(method)}", "```", ""]
    lines += [with_fences(docstring.sections["Example"]), ""]
    lines += ["## See also", "", _prose(docstring.sections["See Also"]), ""]
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


def _words_and_formula(text: str) -> tuple[str, str]:
    r"""Split what follows the summary before the sentence that leads to the first formula.

    Example:
        >>> _words_and_formula("*How it works.* It acts.\n\n.. math:: a\n\nwith :math:`a`.")
        ('It acts.', '.. math:: a\n\nwith :math:`a`.')
    """
    paragraphs = text.removeprefix("*How it works.* ").split("\n\n")
    formulas = [i for i, part in enumerate(paragraphs) if part.startswith(".. math::")]
    first = formulas[0] if formulas else len(paragraphs)
    if not paragraphs[first - 1].endswith("."):  # "The optimizer minimizes" leads to the formula.
        first -= 1
    return "\n\n".join(paragraphs[:first]), "\n\n".join(paragraphs[first:])


def _measured(group: Group, option: str) -> str:
    """Links to the pages whose tables have figures of this option."""
    links = []
    for page in _PAGES[group]:
        text = (DOCS / page).read_text(encoding="utf-8")
        if re.search(rf"^\|.*`{option}`", text, re.MULTILINE):
            title = text.splitlines()[0].removeprefix("# ").replace("`", "")
            links.append(f"[{title}](../../{page})")
    return f"Measured: {', '.join(links)}." if links else ""


def _prose(text: str) -> str:
    """Markdown with links to papers and to pages that the text names, such as docs/auto.md."""
    text = with_paper_links(with_fences(to_markdown(text)))
    return re.sub(r"``docs/([\w/]+\.md)``", r"[`docs/\1`](../../\1)", text)


def _import(method: Method) -> str:
    module, _, name = method.name.rpartition(".")
    return f"from {module.rpartition('.')[0]} import {name}"


def _api_link(method: Method) -> str:
    package = method.name.split(".")[1]
    name = method.name.rpartition(".")[2]
    return f"[`{name}`](../../reference/api/{package}.md)"
