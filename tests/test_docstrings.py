"""Docstrings: their examples run, and each method has all sections."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
import re

import pytest
import yaml

import fst_lightning
from fst_lightning.annotations import find_definition, source_file
from fst_lightning.configuration import conf_folder, groups

SECTIONS = (
    "Args",
    "Shape",
    "Raises",
    "Needs",
    "Cost",
    "When it fails",
    "Note",
    "Example",
    "References",
    "See Also",
)
METHODS = [(group, name) for group in ("attack", "defense", "detector") for name in groups()[group]]

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(fst_lightning.__path__, "fst_lightning.")
    if not module.name.endswith("__main__")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str, tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(str(tmp_path))
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def described(group: str, name: str) -> tuple[str, str, ast.ClassDef]:
    """The docstring of a method's file, that of its class, and the class, from the source."""
    values = yaml.safe_load((conf_folder() / group / f"{name}.yaml").read_text(encoding="utf-8"))
    target = (values if "_target_" in values else values[name])["_target_"]
    module, _, kind = target.rpartition(".")
    found = find_definition(module, kind)
    assert found is not None
    assert isinstance(found.node, ast.ClassDef)
    tree = ast.parse(source_file(found.module).read_text(encoding="utf-8"))
    return ast.get_docstring(tree) or "", ast.get_docstring(found.node) or "", found.node


def arguments(node: ast.ClassDef) -> list[str]:
    """The names of a constructor's arguments."""
    made = [part for part in node.body if isinstance(part, ast.FunctionDef)]
    made = [part for part in made if part.name == "__init__"]
    return [argument.arg for argument in made[0].args.args[1:]] if made else []


def missing_sections(text: str, names: list[str]) -> list[str]:
    """What a class docstring lacks, given the arguments of its constructor."""
    wanted = [part for part in SECTIONS if names or part not in ("Args", "Raises")]
    found = re.findall(r"^([A-Z][A-Za-z ]+):$", text, re.MULTILINE)
    found = [part for part in found if part in SECTIONS]
    lacking = [part for part in wanted if part not in found]
    if not lacking and found != sorted(found, key=SECTIONS.index):
        lacking.append(f"order of sections {found}")
    how = re.search(r"^\*How it works\.\* ((?:.+\n)+)", text, re.MULTILINE)
    if how is None or len(re.findall(r"\.(?:\s|$)", how[1])) < 3:
        lacking.append("How it works in 3 sentences or more")
    if ":math:" not in text and ".. math::" not in text:
        lacking.append("formula")
    arguments_text = text.partition("\nArgs:\n")[2].partition("\n\n")[0]
    documented = re.findall(r"^ {4}(\w+): ", arguments_text, re.MULTILINE)
    lacking += [f"argument {name}" for name in names if name not in documented]
    raised = text.partition("\nRaises:\n")[2].partition("\n\n")[0]
    lacking += [
        f"`If` in {line.strip()}"
        for line in raised.splitlines()
        if re.match(r" {4}\w+: (?!If )", line)
    ]
    if ">>> " not in text:
        lacking.append("example that runs")
    return lacking


@pytest.mark.parametrize(("group", "name"), METHODS)
def test_a_method_has_every_section(group: str, name: str) -> None:
    _, text, node = described(group, name)
    assert missing_sections(text, arguments(node)) == []


@pytest.mark.parametrize(("group", "name"), METHODS)
def test_a_file_shows_the_command_of_its_method(group: str, name: str) -> None:
    text, _, _ = described(group, name)
    commands = re.findall(r"``(python \w+\.py [^`]+)``", text)
    option = rf"\[{name}\]" if group == "detector" else rf"{name}(?: |$)"
    assert any(re.search(rf"\b{group}={option}", command) for command in commands), commands


def test_a_gap_is_found() -> None:
    text = "Do it.\n\nArgs:\n    a: A.\n\nRaises:\n    ValueError: for b.\n"
    assert missing_sections(text, ["a", "b"]) == [
        "Shape",
        "Needs",
        "Cost",
        "When it fails",
        "Note",
        "Example",
        "References",
        "See Also",
        "How it works in 3 sentences or more",
        "formula",
        "argument b",
        "`If` in ValueError: for b.",
        "example that runs",
    ]
