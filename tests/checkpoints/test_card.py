from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fst_lightning.checkpoints import CheckpointError, ModelCard
from tests.checkpoints.samples import make_card

plain = (
    st.none()
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("abcé '\"\\", max_size=20)
)
names = st.text("abc_.", min_size=1, max_size=10)


@given(
    arguments=st.dictionaries(names, plain, max_size=4),
    attack=st.none() | st.dictionaries(names, plain | st.tuples(plain, plain), max_size=4),
    classes=st.lists(names, min_size=2, max_size=6),
    channels=st.integers(1, 4),
)
def test_round_trip(
    arguments: dict[str, Any], attack: dict[str, Any] | None, classes: list[str], channels: int
) -> None:
    card = make_card(
        model={"name": "x", "arguments": arguments},
        attack=attack,
        classes=classes,
        num_classes=len(classes),
        mean=(0.5,) * channels,
        std=(0.1,) * channels,
    )
    again = ModelCard.from_json(card.to_json())
    assert again == card
    assert isinstance(again.classes, tuple)
    assert again.schema_version == 1


BAD: list[tuple[str, object]] = [
    ("schema_version", 2),
    ("schema_version", True),
    ("schema_version", "1"),
    ("num_classes", 1),
    ("num_classes", 100_001),
    ("num_classes", 3.0),
    ("num_classes", True),
    ("classes", ["a", "b"]),
    ("classes", "abc"),
    ("classes", ["a", "b", 3]),
    ("classes", ["a", "b", "x" * 1_001]),
    ("classes", ["a", "b", "\x1b[2J"]),
    ("image_size", 0),
    ("image_size", 4_097),
    ("image_size", None),
    ("mean", []),
    ("mean", [0.5] * 5),
    ("mean", [0.5, 0.5]),
    ("mean", [0.5, "0.5", 0.5]),
    ("mean", [0.5, False, 0.5]),
    ("mean", [10**400, 0.5, 0.5]),
    ("std", [0.5, 0.0, 0.5]),
    ("std", [0.5, -1, 0.5]),
    ("std", 0.5),
    ("model", "resnet18"),
    ("model", {"name": "x"}),
    ("model", {"name": "x", "arguments": {}, "_target_": "os.system"}),
    ("model", {"name": 3, "arguments": {}}),
    ("model", {"name": "", "arguments": {}}),
    ("model", {"name": "x", "arguments": []}),
    ("model", {"name": "x", "arguments": {"a": [1]}}),
    ("model", {"name": "x", "arguments": {"a": {"b": 1}}}),
    ("model", {"name": "x", "arguments": {"a": 2**63}}),
    ("model", {"name": "x", "arguments": {str(i): i for i in range(1_001)}}),
    ("attack", "badnets"),
    ("attack", {"a": {"b": 1}}),
    ("attack", {"a": [[1]]}),
    ("attack", {"a": [1] * 1_001}),
    ("attack", {"a": -(2**63)}),
    ("attack", {"a": [2**63]}),
    ("attack", {"": 1}),
    ("attack", {str(i): i for i in range(1_001)}),
    ("std", [0.5, 0.5]),
    ("head", ""),
    ("head", 1),
    ("head", "x" * 1_001),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_refuses_odd_values(name: str, value: object) -> None:
    values = json.loads(make_card().to_json())
    values[name] = value
    with pytest.raises(CheckpointError) as error:
        ModelCard.from_json(json.dumps(values))
    assert "Expected" in str(error.value)
    assert len(str(error.value)) < 600
    assert "\n" not in str(error.value)
    with pytest.raises(CheckpointError):
        make_card(**{name: value})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "1",
        '"x"',
        "{}",
        "{" * 100_000,
        "[" * 100_000,
        "9" * 5_000,
        '{"schema_version": NaN}',
        '{"schema_version": 1, "schema_version": 1}',
        '{"schema_version": 1}',
        "x" * 10_000_001,
        "\x00",
    ],
    ids=range(14),
)
def test_refuses_other_text(text: str) -> None:
    with pytest.raises(CheckpointError):
        ModelCard.from_json(text)


def test_refuses_unknown_fields() -> None:
    values = json.loads(make_card().to_json()) | {"_target_": "os.system"}
    with pytest.raises(CheckpointError, match="unknown field `_target_`"):
        ModelCard.from_json(json.dumps(values))


def test_refuses_other_types() -> None:
    with pytest.raises(CheckpointError, match="a JSON string"):
        ModelCard.from_json(b"{}")  # type: ignore[arg-type]


def test_refuses_a_name_that_is_given_twice() -> None:
    """A reader that takes the first and one that takes the last would see two cards."""
    text = make_card().to_json()
    assert text.startswith('{"schema_version": 1, ')
    with pytest.raises(CheckpointError, match="one is repeated"):
        ModelCard.from_json('{"schema_version": 1, ' + text[1:])


def test_the_largest_values() -> None:
    card = make_card(
        num_classes=100_000,
        classes=("",) * 99_999 + ("x" * 1_000,),
        image_size=4_096,
        mean=(0.5,) * 4,
        std=(5e-324,) * 4,
        model={"name": "x" * 1_000, "arguments": {str(i): i for i in range(1_000)}},
        attack={"a": (1.5,) * 1_000, "b": 2**63 - 1, "c": -(2**63) + 1, "d": ("", None, True)},
        head="x" * 1_000,
    )
    again = ModelCard.from_json(card.to_json())
    assert again == card
    assert again.attack == card.attack
    smallest = make_card(num_classes=2, classes=("a", "b"), image_size=1, mean=(0,), std=(1,))
    assert ModelCard.from_json(smallest.to_json()).mean == (0.0,)
