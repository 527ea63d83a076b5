"""The reference of ``results.json``, from its JSON schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from fst_lightning.annotations import source_file

SCHEMA = source_file("fst_lightning.reports.results").with_name("results.schema.json")
PAGE = "reference/results_json.md"


class Field(NamedTuple):
    """A key of ``results.json``.

    Attributes:
        name: Its dotted name; ``NAME`` stands for a name that the run chooses.
        type: What it holds.
        required: Whether every file has it, or every block that it belongs to.
        meaning: What it says.
    """

    name: str
    type: str
    required: bool
    meaning: str


def fields(schema: Mapping[str, Any]) -> list[Field]:
    """All keys that a schema describes, in its order.

    Example:
        >>> fields({"properties": {"seed": {"type": "integer"}}, "required": ["seed"]})
        [Field(name='seed', type='integer', required=True, meaning='')]
    """
    return list(_fields(schema, schema.get("$defs", {}), ""))


def results_page() -> str:
    """The page, in Markdown."""
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    lines = [
        "# results.json",
        "",
        "Every run writes `results.json` into its folder. Shares are fractions in [0, 1], times "
        "are seconds, sizes are megabytes, and a figure that does not apply is `null`. "
        "`from fst_lightning.reports import read_results` reads the file and checks it.",
        "",
        "[Figures of a report](../figures.md) explains the figures, and the "
        "[glossary](../glossary.md) defines CA, ASR, RA and DER.",
        "",
        "| key | type | always there | meaning |",
        "|---|---|---|---|",
    ]
    for field in fields(schema):
        always = "yes" if field.required else ""
        lines.append(f"| `{field.name}` | {field.type} | {always} | {field.meaning} |")
    return "\n".join(lines) + "\n"


def _fields(node: Mapping[str, Any], shared: Mapping[str, Any], prefix: str) -> Iterator[Field]:
    required = node.get("required", [])
    for name, reference in node.get("properties", {}).items():
        value = _resolved(reference, shared)
        path = f"{prefix}{name}"
        meaning = reference.get("description", value.get("description", ""))
        yield Field(path, _type(reference, value, shared), name in required, meaning)
        yield from _below(value, shared, path)


def _below(value: Mapping[str, Any], shared: Mapping[str, Any], path: str) -> Iterator[Field]:
    yield from _fields(value, shared, f"{path}.")
    items = value.get("items")
    if isinstance(items, dict):
        yield from _fields(_resolved(items, shared), shared, f"{path}[].")
    further = value.get("additionalProperties")
    if isinstance(further, dict):
        yield from _fields(_resolved(further, shared), shared, f"{path}.NAME.")


def _resolved(node: Mapping[str, Any], shared: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = node.get("$ref")
    return node if reference is None else shared[reference.rpartition("/")[2]]


def _type(node: Mapping[str, Any], value: Mapping[str, Any], shared: Mapping[str, Any]) -> str:
    if "const" in value:
        return f"`{json.dumps(value['const'])}`"
    if "enum" in value:
        return ", ".join(f"`{json.dumps(word)}`" for word in value["enum"])
    kinds = value.get("type", "anything")
    words = [kinds] if isinstance(kinds, str) else list(kinds)
    if value.get("minimum") == 0 and value.get("maximum") == 1:
        words = ["fraction" if word == "number" else word for word in words]
    if isinstance(value.get("items"), dict) and "array" in words:
        item = value["items"]
        words[words.index("array")] = f"list of {_type(item, _resolved(item, shared), shared)}"
    return " or ".join(words)
