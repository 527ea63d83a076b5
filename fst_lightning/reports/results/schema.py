"""Check results against the published `results.schema.json`."""

import json
import math
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

SCHEMA_VERSION = 1

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "null": (type(None),),
}


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
    problem = _problem(results, results_schema(), "results")
    if problem is None and isinstance(results, dict):
        problem = _contradiction(results)
    if problem is not None:
        raise ValueError(problem)


def _problem(value: object, schema: Mapping[str, Any], where: str) -> str | None:
    """Find the first breach: the few JSON Schema keywords that results.schema.json uses."""
    if "$ref" in schema:
        schema = results_schema()["$defs"][schema["$ref"].rpartition("/")[2]]
    expected = _breach(value, schema)
    if expected is not None:
        return f"Expected `{where}` to be {expected}, but got {_short(value)}."
    if isinstance(value, list):
        for i, item in enumerate(value):
            problem = _problem(item, schema.get("items", {}), f"{where}[{i}]")
            if problem is not None:
                return problem
    if isinstance(value, dict):
        prefix = "" if where == "results" else f"{where}."
        for key, part in schema.get("properties", {}).items():
            problem = _problem(value[key], part, prefix + key) if key in value else None
            if problem is not None:
                return problem
        for key in schema.get("required", []):
            if key not in value:
                return f"Expected a key `{prefix}{key}`, but found none; null says 'not given'."
    return None


def _breach(value: object, schema: Mapping[str, Any]) -> str | None:
    """Say what the value itself should have been, or None where it is right."""
    if "const" in schema and (value != schema["const"] or isinstance(value, bool)):
        return str(schema["const"])
    if "enum" in schema and value not in schema["enum"]:
        return " or ".join(repr(choice) for choice in schema["enum"])
    names = schema.get("type", [])
    names = [names] if isinstance(names, str) else names
    if names and not any(_is_a(value, name) for name in names):
        return " or ".join(names)
    if isinstance(value, int | float) and not isinstance(value, bool):
        # Written this way round so that NaN, which compares with nothing, is refused too.
        if "minimum" in schema and not value >= schema["minimum"]:
            return f"at least {schema['minimum']}"
        if "maximum" in schema and not value <= schema["maximum"]:
            return f"at most {schema['maximum']}"
        if isinstance(value, float) and not math.isfinite(value):
            return "a finite number"
    if isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            return f"a list of at least {schema['minItems']} items"
        if len(value) > schema.get("maxItems", len(value)):
            return f"a list of at most {schema['maxItems']} items"
    return None


def _is_a(value: object, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    if name == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES[name])


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
