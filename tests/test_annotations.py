"""The types that are read from the source are those that Python has."""

import inspect
import subprocess
import sys
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import yaml

from fst_lightning.annotations import argument_types, described, fits, nearest_choice
from fst_lightning.configuration import conf_folder

TARGETS = sorted(
    {
        content["_target_"]
        for file in conf_folder().glob("*/*.yaml")
        if str(
            (content := yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("_target_")
        ).startswith("fst_lightning.")
    }
)


def plain(hint: Any) -> Any:
    """A type as the source alone tells it: without what stands in brackets."""
    kind = get_origin(hint) or hint
    if kind in (Union, types.UnionType):
        return frozenset(plain(option) for option in get_args(hint))
    if kind is Literal:
        return hint
    names = {"Sequence": list, "tuple": list, "Mapping": dict}
    kind = names.get(getattr(kind, "__name__", ""), kind)
    return kind if kind in (int, float, bool, str, list, dict, types.NoneType) else Any


@pytest.mark.parametrize("target", TARGETS)
def test_the_source_says_what_python_says(target: str) -> None:
    module, _, name = target.rpartition(".")
    found = getattr(__import__(module, fromlist=[name]), name)
    called = inspect.getattr_static(found, "__init__") if isinstance(found, type) else found
    wanted = get_type_hints(called)
    for name in ("return", "self", "args", "kwargs"):  # of torch's own constructor
        wanted.pop(name, None)
    read = argument_types(target)
    assert set(read) == set(wanted)
    for argument, hint in wanted.items():
        assert plain(read[argument]) == plain(hint), argument


def test_a_foreign_target_has_no_types() -> None:
    for target in ("torch.optim.SGD", "fst_lightning.nope.Nope", "fst_lightning.defenses.Nope", ""):
        assert argument_types(target) == {}


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (1, int, True),
        (True, int, False),
        (1.0, int, False),
        (1, float, True),
        (None, float | None, True),
        ("a", float | Literal["auto"], False),
        ("auto", float | Literal["auto"], True),
        ([1], list, True),
        ("x", Any, True),
    ],
)
def test_fits(value: Any, hint: Any, expected: bool) -> None:
    assert fits(value, hint) is expected


def test_words() -> None:
    hint = float | Literal["auto"] | None
    assert described(hint) == "a number or auto or null"
    assert nearest_choice("aut", hint) == " Did you mean auto?"
    assert nearest_choice("x", float) == ""


def test_nothing_heavy_is_imported() -> None:
    program = (
        "import sys; from fst_lightning.annotations import argument_types as types; "
        "assert types('fst_lightning.defenses.FST'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
