"""Check results against the published `results.schema.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError
    from jsonschema.protocols import Validator

SCHEMA_VERSION = 1


@cache
def results_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of results.json."""
    file = resources.files("fst_lightning.reports.results").joinpath("results.schema.json")
    schema: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return schema


def validate(results: object) -> None:
    """Refuse results that break their schema, or contradict themselves.

    Args:
        results: what a results.json holds, as `build_results` makes it or `json.load` reads it.

    Raises:
        ValueError: With the first key that is wrong, what it holds and what it should hold.

    Example:
        >>> validate({"schema_version": 2})
        Traceback (most recent call last):
        ...
        ValueError: Expected `schema_version` to be 1, but got 2.
    """
    # A value that is wrong says more than a key that is missing.
    errors = sorted(_validator().iter_errors(results), key=lambda e: e.validator == "required")
    problem = _sentence(errors[0]) if errors else None
    if problem is None and isinstance(results, dict):
        problem = _contradiction(results)
    if problem is not None:
        raise ValueError(problem)


@cache
def _validator() -> Validator:
    """The validator of JSON Schema, for which NaN and infinities are no numbers."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    def is_finite(_: object, value: object) -> bool:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and not (isinstance(value, float) and not math.isfinite(value))

    types = Draft202012Validator.TYPE_CHECKER.redefine("number", is_finite)
    return extend(Draft202012Validator, type_checker=types)(results_schema())


def _sentence(error: ValidationError) -> str:
    where, value, expected = _place(error.absolute_path), error.instance, error.validator_value
    match error.validator:
        case "required":
            prefix = "" if where == "results" else f"{where}."
            key = next(key for key in expected if key not in value)
            return f"Expected a key `{prefix}{key}`, but found none; null says 'not given'."
        case "type":
            wanted = expected if isinstance(expected, str) else " or ".join(expected)
        case "enum":
            wanted = " or ".join(map(repr, expected))
        case "minimum":
            wanted = f"at least {expected}"
        case "maximum":
            wanted = f"at most {expected}"
        case "minItems":
            wanted = f"a list of at least {expected} items"
        case "maxItems":
            wanted = f"a list of at most {expected} items"
        case _:
            wanted = str(expected)
    return f"Expected `{where}` to be {wanted}, but got {_short(value)}."


def _place(path: Iterable[str | int]) -> str:
    """The key of a value: ``ci95.before.ca[1]``."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    return text.removeprefix(".") or "results"


def _contradiction(results: Mapping[str, Any]) -> str | None:
    """Find what a schema can't say."""
    if results["task"] != "purify" and results["after"] is not None:
        return f"Expected `after` to be null if `task` is {results['task']!r}, but got figures."
    for when, intervals in results["ci95"].items():
        for key in ("ca", "asr", "ra") if isinstance(intervals, dict) else ():
            interval = intervals.get(key)
            if interval is not None and interval[0] > interval[1]:
                return f"Expected `ci95.{when}.{key}` to be in order, but got {interval}."
    return None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
