r"""Turns TeX into MathML when the site is built, so that pages show formulas without a script.

Pages write formulas as GitHub does: ``$`a^2`$`` in a sentence, and a fence named ``math`` around a
formula that stands alone.
"""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor

_INLINE = r"\$`([^`]+)`\$"
_BEFORE_CODE = 195  # Python-Markdown's own pattern for code has priority 190.


def mathml(tex: str, *, block: bool = False) -> str:
    r"""Convert a formula.

    Args:
        tex: The formula, without delimiters.
        block: Whether the formula stands alone.

    Raises:
        ValueError: If the formula has a command that the converter does not know.

    Example:
        >>> "<mi>&#x003B1;</mi>" in mathml(r"\alpha")
        True
    """
    tex = re.sub(r"\\arg(?![A-Za-z])", r"\\mathrm{arg}", " ".join(tex.split()))
    found: str = convert(tex, display="block" if block else "inline")
    unknown = re.search(r"\\[A-Za-z]+", found)
    if unknown is not None:
        raise ValueError(
            f"Expected TeX that latex2mathml knows, but got `{unknown[0]}` in the formula {tex!r}."
        )
    return found


def fence(source: str, *arguments: Any, **options: Any) -> str:
    """Format a fence named ``math``, for ``pymdownx.superfences``."""
    return f'<div class="formula">{mathml(source, block=True)}</div>'


class _Inline(InlineProcessor):  # type: ignore[misc]  # the library has no types
    def handleMatch(self, m: re.Match[str], data: str) -> tuple[ElementTree.Element, int, int]:
        element = ElementTree.fromstring(mathml(m[1]))
        for part in element.iter():
            part.tag = part.tag.rpartition("}")[2]
        return element, m.start(0), m.end(0)


class Formulas(Extension):  # type: ignore[misc]  # the library has no types
    """The extension of Python-Markdown for formulas in a sentence."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Register the pattern before the one for code."""
        md.inlinePatterns.register(_Inline(_INLINE, md), "formula", _BEFORE_CODE)


def makeExtension(**options: Any) -> Formulas:
    """Make the extension; Python-Markdown calls this function by its name."""
    return Formulas(**options)
