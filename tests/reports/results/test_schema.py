import copy
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fst_lightning.reports import results_schema, validate
from tests.reports.example import example, score, without

HEALTHY = [
    example(),
    example(task="train", after=None, defense=None),
    example(attack={"name": "none"}, before=score(950), after=score(940)),
    {**example(), "something_new": [1]},
]


def change(results: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    changed = copy.deepcopy(results)
    *parents, last = path.split(".")
    block = changed
    for parent in parents:
        block = block[parent]
    block[last] = value
    return changed


@pytest.mark.parametrize("results", HEALTHY)
def test_accepts_what_runs_write(results: dict[str, Any]) -> None:
    validate(results)


BREACHES = [
    ("schema_version", 2, "`schema_version` to be 1, but got 2"),
    ("schema_version", True, "`schema_version` to be 1, but got True"),
    ("seed", "0", "`seed` to be integer, but got '0'"),
    ("seed", True, "`seed` to be integer, but got True"),
    ("attack", None, "`attack` to be object, but got None"),
    ("before.ca", 91.8, "`before.ca` to be at most 1, but got 91.8"),
    ("before.ca", -0.1, "`before.ca` to be at least 0"),
    ("after.ra", "0.5", "`after.ra` to be number or null"),
    ("der", 2, "`der` to be at most 1"),
    ("ci95.before.ca", [0.1], "`ci95.before.ca` to be a list of at least 2 items"),
    ("ci95.before.ca", [0.1, 0.2, 0.3], "`ci95.before.ca` to be a list of at most 2 items"),
    ("ci95.before.ca", [0.1, 1.2], r"`ci95.before.ca\[1\]` to be at most 1"),
    ("checkpoints.purified", 3, "`checkpoints.purified` to be string or null"),
    ("overrides", ["a", 1], r"`overrides\[1\]` to be string"),
]


@pytest.mark.parametrize(("path", "value", "message"), BREACHES)
def test_names_the_breach(path: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate(change(example(), path, value))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_refuses_numbers_that_are_not_finite(value: float) -> None:
    for path in ("before.ca", "seconds.train"):
        with pytest.raises(ValueError, match=f"`{path}` to be"):
            validate(change(example(), path, value))


def test_refuses_an_interval_that_runs_backwards() -> None:
    with pytest.raises(ValueError, match=r"`ci95\.after\.asr` to be in order"):
        validate(change(example(), "ci95.after.asr", [0.9, 0.1]))


LATER = ("overrides", "training", "tuning")
"""Keys that files of earlier versions lack, which are read all the same."""


@pytest.mark.parametrize("key", [key for key in example() if key not in LATER])
def test_every_promised_key_is_required(key: str) -> None:
    with pytest.raises(ValueError, match=f"Expected a key `{key}`"):
        validate(without(example(), key))


@pytest.mark.parametrize("content", [None, [], "results", 3, {}, {"schema_version": 1}])
def test_refuses_other_files(content: object) -> None:
    with pytest.raises(ValueError, match="Expected"):
        validate(content)


leaves = st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.text(max_size=3)
values = st.recursive(
    leaves, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=2), v, max_size=3)
)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(example())), values)
def test_any_value_is_accepted_or_refused_with_a_message(key: str, value: object) -> None:
    message = ""
    try:
        validate({**example(), key: value})
    except ValueError as error:
        message = str(error)
    assert not message or message.startswith("Expected ")


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(results_schema())


def test_of_two_breaches_the_wrong_value_is_named() -> None:
    broken = change(without(example(), "seed"), "before.ca", 2)
    with pytest.raises(ValueError, match=r"`before\.ca` to be at most 1, but got 2\."):
        validate(broken)
