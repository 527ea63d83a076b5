"""Reads docstrings from the source and rewrites their markup as Markdown."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import NamedTuple

from fst_lightning.annotations import find_definition, source_file

_ROLE = re.compile(r":(?P<role>[a-z]+):`(?P<text>[^`]+)`")
_FORMULA = re.compile(r"^(?P<indent> *)\.\. math::(?P<first>.*)\n?(?P<rest>(?:(?P=indent) .*\n?)*)")
_SECTION = re.compile(r"^([A-Z][A-Za-z ]+):\n((?:[ \t]+.*(?:\n|$)|\n)+)", re.MULTILINE)
_PROMPT = re.compile(r"(^ *>>> .*\n?(?:.*\S.*\n?)*)", re.MULTILINE)
_PAPER = re.compile(r"arXiv:?[\s~]+(?P<arxiv>\d{4}\.\d{4,5})|(?<![(<\[])(?P<url>https://\S+)")


class Docstring(NamedTuple):
    """The parts of a docstring.

    Attributes:
        summary: The first paragraph.
        text: What follows, up to the first section.
        sections: Sections such as ``Note`` by their names, without indentation.
    """

    summary: str
    text: str
    sections: Mapping[str, str]


class Method(NamedTuple):
    """What the source says about an attack, a defense or a detector.

    Attributes:
        name: The dotted name of the class.
        module: The docstring of its file.
        docstring: Its own docstring.
        definition: The class in the source.
    """

    name: str
    module: Docstring
    docstring: Docstring
    definition: ast.ClassDef


def read_method(target: str) -> Method:
    """Find a class of this package in the source, without importing it.

    Args:
        target: Its dotted name, as in ``_target_``.

    Raises:
        LookupError: If there is no such class.

    Example:
        >>> read_method("fst_lightning.defenses.FST").name
        'fst_lightning.defenses.fst.FST'
    """
    module, _, name = target.rpartition(".")
    found = find_definition(module, name)
    if found is None or not isinstance(found.node, ast.ClassDef):
        raise LookupError(f"Expected `target` to be a class of this package, but got {target!r}.")
    return Method(
        f"{found.module}.{found.node.name}",
        split_docstring(_module_docstring(found.module)),
        split_docstring(ast.get_docstring(found.node) or ""),
        found.node,
    )


def split_docstring(text: str) -> Docstring:
    r"""Split a docstring in Google's style into summary, text and sections.

    Example:
        >>> split_docstring("Do it.\n\nNote:\n    Once.").sections
        {'Note': 'Once.'}
    """
    sections = {}
    for match in _SECTION.finditer(text):
        lines = match[2].rstrip().splitlines()
        indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
        sections[match[1]] = "\n".join(line[indent:] for line in lines).strip("\n")
    head = _SECTION.split(text, maxsplit=1)[0].strip()
    summary, _, rest = head.partition("\n\n")
    return Docstring(" ".join(summary.split()), rest.strip(), sections)


def to_markdown(text: str) -> str:
    r"""Rewrite roles, formulas and examples of a docstring as Markdown.

    Roles such as ``:func:`` become links that stay plain text if the site has no such object.

    Example:
        >>> to_markdown("The weight :math:`W`; see :class:`~a.B`.")
        'The weight $`W`$; see <autoref identifier="a.B" optional><code>B</code></autoref>.'
    """
    lines, rest = [], text
    while rest:
        formula = _FORMULA.match(rest)
        if formula:
            tex = " ".join(f"{formula['first']} {formula['rest']}".split())
            indent = formula["indent"]
            lines.append(f"\n{indent}```math\n{indent}{tex}\n{indent}```\n")
            rest = rest[formula.end() :]
        else:
            line, newline, rest = rest.partition("\n")
            lines.append(line + newline)
    return _ROLE.sub(_link, "".join(lines))


def with_fences(text: str) -> str:
    """Put fences around the examples of a docstring."""
    return _PROMPT.sub(lambda code: f"\n```pycon\n{code[1].rstrip()}\n```\n", text)


def with_paper_links(text: str) -> str:
    """Link arXiv identifiers and addresses.

    Example:
        >>> with_paper_links("arXiv 2310.01875")
        '[arXiv 2310.01875](https://arxiv.org/abs/2310.01875)'
        >>> with_paper_links("ICLR 2024, https://openreview.net/forum?id=Tw9wemV6cb")
        'ICLR 2024, <https://openreview.net/forum?id=Tw9wemV6cb>'
    """
    return _PAPER.sub(_paper_link, text)


def _paper_link(paper: re.Match[str]) -> str:
    number = paper["arxiv"]
    if number is None:
        return f"<{paper['url']}>"
    return f"[arXiv {number}](https://arxiv.org/abs/{number})"


def _link(role: re.Match[str]) -> str:
    text = " ".join(role["text"].split())
    if role["role"] == "math":
        return f"$`{text}`$"
    name = text.removeprefix("~")
    shown = name.rpartition(".")[2] if text.startswith("~") else name
    return f'<autoref identifier="{name}" optional><code>{shown}</code></autoref>'


def _module_docstring(module: str) -> str:
    return ast.get_docstring(ast.parse(source_file(module).read_text(encoding="utf-8"))) or ""
