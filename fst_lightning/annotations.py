"""The types of constructor arguments, read from this package's source without importing it."""

from __future__ import annotations

import ast
import collections.abc
import difflib
import functools
import re
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

_ROOT = Path(__file__).parent
_PACKAGE = _ROOT.name
_NAMED: Mapping[str, Any] = {
    **{kind.__name__: kind for kind in (int, float, bool, str, list, dict)},
    **{"None": types.NoneType, "Sequence": list, "tuple": list, "Mapping": dict},
}
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


class Definition(NamedTuple):
    """A class, function or constant in the source.

    Attributes:
        node: Its statement.
        module: The dotted name of its module.
    """

    node: ast.AST
    module: str


def argument_types(target: str) -> dict[str, Any]:
    """Return the annotated types of what a class or function of this package is called with.

    A type that can't be told from the source alone is ``Any``, and a foreign target has none.

    Args:
        target: Its dotted name, as in ``_target_``.

    Example:
        >>> hints = argument_types("fst_lightning.defenses.FST")
        >>> hints["alpha"], hints["reinit"]
        (<class 'float'>, typing.Literal['orthogonal', 'uniform', 'none'])
    """
    module, _, name = target.rpartition(".")
    found = find_definition(module, name)
    if found is not None and isinstance(found.node, ast.ClassDef):
        found = _constructor(found)
    if found is None or not isinstance(found.node, ast.FunctionDef):
        return {}
    arguments = found.node.args
    return {
        argument.arg: _evaluated(argument.annotation, found.module)
        for argument in (*arguments.args, *arguments.kwonlyargs)
        if argument.annotation is not None
    }


def argument_meanings(target: str) -> dict[str, str]:
    """Return what the docstring of a class or function of this package says of its arguments.

    Args:
        target: Its dotted name, as in ``_target_``.

    Example:
        >>> argument_meanings("fst_lightning.data.Fake")["num_train"]
        'Number of training images, at least 1.'
    """
    module, _, name = target.rpartition(".")
    found = find_definition(module, name)
    if found is None or not isinstance(found.node, ast.ClassDef | ast.FunctionDef):
        return {}
    text = ast.get_docstring(found.node) or ""
    section = re.search(r"^Args:\n((?: .*\n?|\n)+)", text, re.MULTILINE)
    entries = re.split(r"^ {4}(?=\w+: )", section[1] if section else "", flags=re.MULTILINE)
    parts = (entry.partition(": ") for entry in entries)
    return {name: " ".join(says.split()) for name, _, says in parts if says}


def fits(value: Any, hint: Any, *, choices: bool = True) -> bool:
    """Whether a plain value, as YAML has it, is of a type.

    Args:
        value: What to look at.
        hint: The type.
        choices: Whether a ``Literal`` admits its own words alone; else it admits everything.

    Example:
        >>> fits(1, float), fits(True, int), fits("b", Literal["a"]), fits([1], list[int])
        (True, False, False, True)
    """
    kind = get_origin(hint) or hint
    if kind is Any:
        return True
    if kind in (Union, types.UnionType):
        return any(fits(value, option, choices=choices) for option in get_args(hint))
    if kind is Literal:
        return not choices or value in get_args(hint)
    if kind in (int, float):
        return isinstance(value, int | kind) and not isinstance(value, bool)
    if kind in (collections.abc.Sequence, list, tuple):
        return isinstance(value, list | tuple)
    try:
        return isinstance(value, kind)
    except TypeError:
        return True  # Nothing that can be asked at run time, a protocol for example.


def described(hint: Any) -> str:
    """Say in words what a type admits.

    Example:
        >>> described(float | None), described(Literal["a", "b"])
        ('a number or null', 'one of a, b')
    """
    kind = get_origin(hint) or hint
    if kind in (Union, types.UnionType):
        return " or ".join(described(option) for option in get_args(hint))
    if kind is types.NoneType:
        return "null"
    if kind is Literal:
        options = [str(option) for option in get_args(hint)]
        return f"one of {', '.join(options)}" if len(options) > 1 else options[0]
    if kind in (collections.abc.Sequence, list, tuple):
        return "a list"
    return _WORDS.get(kind, getattr(kind, "__name__", str(kind)))


def nearest_choice(value: Any, hint: Any) -> str:
    """A sentence with the choice that a mistyped word is most like, or nothing.

    Example:
        >>> nearest_choice("orthonogal", Literal["orthogonal", "uniform"])
        ' Did you mean orthogonal?'
    """
    options = [option for option in _choices(hint) if isinstance(option, str)]
    near = difflib.get_close_matches(str(value), options, n=1)
    return f" Did you mean {near[0]}?" if near else ""


def _choices(hint: Any) -> Iterator[Any]:
    if get_origin(hint) is Literal:
        yield from get_args(hint)
    for option in get_args(hint):
        yield from _choices(option)


@functools.cache
def _definitions(module: str) -> Mapping[str, ast.AST]:
    """What the top level of a module defines or imports, by name."""
    file = source_file(module)
    if module.split(".")[0] != _PACKAGE or not file.is_file():
        return {}
    found: dict[str, ast.AST] = {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: node for alias in node.names}
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = node.value
    return found


def source_file(module: str) -> Path:
    """The file of a module of this package, whether it exists or not.

    Args:
        module: Its dotted name.

    Example:
        >>> source_file("fst_lightning.defenses").name
        '__init__.py'
    """
    path = _ROOT.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def find_definition(module: str, name: str) -> Definition | None:
    """Follow a name through imports to where it is defined.

    Args:
        module: The dotted name of a module of this package.
        name: A name in it.

    Returns:
        The definition; None if the name comes from another package, or does not exist.

    Example:
        >>> find_definition("fst_lightning.defenses", "FST").module
        'fst_lightning.defenses.fst'
    """
    node = _definitions(module).get(name)
    if not isinstance(node, ast.ImportFrom):
        return None if node is None else Definition(node, module)
    original = next(alias.name for alias in node.names if name in (alias.asname, alias.name))
    return find_definition(node.module or "", original)


def _constructor(found: Definition) -> Definition | None:
    """The ``__init__`` of a class, or of the first of its bases that has one."""
    if not isinstance(found.node, ast.ClassDef):
        return None
    for node in found.node.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            return Definition(node, found.module)
    for base in found.node.bases:
        parent = find_definition(found.module, base.id) if isinstance(base, ast.Name) else None
        constructor = None if parent is None else _constructor(parent)
        if constructor is not None:
            return constructor
    return None


def _evaluated(node: ast.AST, module: str) -> Any:
    """The type that an annotation stands for; ``Any`` for one that is not understood."""
    if isinstance(node, ast.Constant) and node.value is None:
        return types.NoneType
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return Union[_evaluated(node.left, module), _evaluated(node.right, module)]  # noqa: UP007
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        if node.value.id != "Literal":
            return _NAMED.get(node.value.id, Any)
        items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return Literal[tuple(item.value for item in items if isinstance(item, ast.Constant))]
    if isinstance(node, ast.Name):
        alias = find_definition(module, node.id)
        if alias is not None and isinstance(alias.node, ast.expr):
            return _evaluated(alias.node, alias.module)
        return _NAMED.get(node.id, Any)
    return Any
