"""Docstrings of this package become Markdown."""

from __future__ import annotations

import ast
import doctest
import importlib
from pathlib import Path

import pytest

from website.docstrings import split_docstring, to_markdown, with_fences

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "name",
    [
        "docstrings",
        "links",
        "methods",
        "options",
        "pages",
        "python_api",
        "results_schema",
        "tutorials",
    ],
)
def test_examples_run(name: str) -> None:
    tried = doctest.testmod(importlib.import_module(f"website.{name}"))
    assert tried.failed == 0


def test_a_formula_over_several_lines_is_a_fence() -> None:
    text = "Do it.\n\n.. math:: a +\n    b\n\nHere :math:`a` is one."
    assert to_markdown(text) == "Do it.\n\n\n```math\na + b\n```\n\nHere $`a`$ is one."


def test_a_formula_in_a_section_keeps_its_indentation() -> None:
    found = to_markdown("Note:\n    .. math:: a\n        + b\n\n    So.")
    assert "    ```math\n    a + b\n    ```\n" in found


def test_sections_end_where_the_next_one_begins() -> None:
    found = split_docstring(
        "One.\n\nMore.\n\nArgs:\n    a: b.\n        c.\n\nNote:\n    Yes.\n\n    No."
    )
    assert found.text == "More."
    assert found.sections == {"Args": "a: b.\n    c.", "Note": "Yes.\n\nNo."}


def test_examples_stand_in_fences() -> None:
    assert with_fences("As in\n\n>>> 1 + 1\n2\n\nand so on.") == (
        "As in\n\n\n```pycon\n>>> 1 + 1\n2\n```\n\nand so on."
    )


def test_every_formula_of_the_package_is_understood() -> None:
    formulas = pytest.importorskip("website.formulas", exc_type=ImportError)
    number = 0
    for file in (ROOT / "fst_lightning").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = to_markdown(ast.get_docstring(node) or "")
                inline = [part for part in text.split("$`")[1:] if "`$" in part]
                blocks = text.split("```math\n")[1:]
                for tex in [part.partition("`$")[0] for part in inline] + [
                    part.partition("```")[0] for part in blocks
                ]:
                    formulas.mathml(tex)
                    number += 1
    assert number > 100
