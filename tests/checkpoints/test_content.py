"""Names, numbers and kinds of tensors, at and just beyond what is allowed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fst_lightning.checkpoints import content
from fst_lightning.checkpoints.content import check_count, check_name, checked_tensors
from fst_lightning.checkpoints.errors import Refusal, key_advice, shown


def test_how_many() -> None:
    check_count(100_000)
    with pytest.raises(Refusal, match="holds 100,001 tensors"):
        check_count(100_001)


def test_names() -> None:
    assert check_name("x") == "x"
    assert check_name("x" * 1_000) == "x" * 1_000
    for name in ("", "x" * 1_001, 3, None, b"x", ("x",)):
        with pytest.raises(Refusal, match="has a tensor named"):
            check_name(name)


def test_ordinary_tensors_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = nn.Parameter(torch.ones(2))
    found = checked_tensors({"a": weight, "b": torch.tensor(True)})
    assert list(found) == ["a", "b"]
    assert not found["a"].requires_grad
    assert torch.equal(found["a"], torch.ones(2))
    special: list[Tensor] = [
        torch.ones(2).to_sparse(),
        torch.ones(2, device="meta"),
        torch.ones(2).to(torch.float8_e5m2),
    ]
    for tensor in special:
        with pytest.raises(Refusal, match="special tensor `a`"):
            checked_tensors({"a": tensor})
    with pytest.raises(Refusal, match="has a tensor named"):
        checked_tensors({"": torch.ones(1)})
    monkeypatch.setattr(content, "_TENSOR_LIMIT", 1)
    with pytest.raises(Refusal, match="holds 2 tensors"):
        checked_tensors({"a": torch.ones(1), "b": torch.ones(1)})


def test_text_from_a_file_is_short_and_printable() -> None:
    assert shown("x" * 120) == f"`{'x' * 120}`"
    assert shown("x" * 121) == f"`{'x' * 120}...`"
    assert shown("\x1b" * 121) == "`" + r"\x1b" * 30 + "...`"
    assert shown(7) == "`7`"
    assert key_advice("student.") == "`checkpoint_key=student`"


def test_a_refusal_in_words() -> None:
    refusal = Refusal("is empty", "Copy it again")
    assert str(refusal.about(content.__file__)) == f"{content.__file__}: is empty. Copy it again."  # type: ignore[arg-type]
    assert refusal.args == ("is empty", "Copy it again")
