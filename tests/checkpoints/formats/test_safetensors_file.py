"""Headers of safetensors files, at and just beyond what is allowed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fst_lightning.checkpoints.errors import Refusal
from fst_lightning.checkpoints.formats import safetensors_file
from fst_lightning.checkpoints.formats.safetensors_file import (
    looks_like_safetensors,
    read_safetensors,
)


def written(path: Path, header: bytes, data: bytes = b"", length: int | None = None) -> Path:
    announced = len(header) if length is None else length
    path.write_bytes(announced.to_bytes(8, "little") + header + data)
    return path


def read(path: Path, key: str | None = None) -> dict[str, torch.Tensor]:
    with path.open("rb") as file:
        return read_safetensors(file, path.stat().st_size, key).tensors


def refused(path: Path) -> str:
    with pytest.raises(Refusal) as caught:
        read(path)
    return caught.value.found


def test_the_start_of_a_file() -> None:
    assert looks_like_safetensors(b"\x02" + bytes(7) + b"{")
    assert not looks_like_safetensors(b"\x02" + bytes(7))
    assert not looks_like_safetensors(b"\x02" + bytes(7) + b"[")


def test_the_length_of_a_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = json.dumps(
        {"a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}}, separators=(",", ":")
    ).encode()
    path = written(tmp_path / "a", header, b"\1\2\3")
    assert read(path)["a"].tolist() == [1, 2, 3]
    monkeypatch.setattr(safetensors_file, "_HEADER_LIMIT", len(header))
    assert read(path)["a"].tolist() == [1, 2, 3]
    monkeypatch.setattr(safetensors_file, "_HEADER_LIMIT", len(header) - 1)
    assert "announces a safetensors header" in refused(path)
    monkeypatch.undo()
    assert read(written(path, b"{}")) == {}
    for data, length in ((b"{}", 3), (b"{", 1), (b"", 0)):
        assert "announces a safetensors header" in refused(written(path, data, length=length))
    for short in (b"", b"\2" + bytes(6)):
        path.write_bytes(short)
        assert "a safetensors header of 0 bytes" in refused(path)


def test_headers_that_lie(tmp_path: Path) -> None:
    entry = '{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
    twice = f'{{"a":{entry},"a":{entry}}}'.encode()
    assert "one name twice" in refused(written(tmp_path / "a", twice, b"x"))
    for header in (b"{]", b"[1]", b"\xff\xff", b"1 ", b"[" * 100_000):
        assert "its header is no" in refused(written(tmp_path / "a", header))
    for changed in (entry.replace("[0,1]", "[0,2]"), entry.replace("[1]", "[2]")):
        header = f'{{"a":{changed}}}'.encode()
        assert refused(written(tmp_path / "a", header, b"xyz")).startswith("is damaged")


def test_a_part_of_a_file_is_a_copy(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {
        "a.x": torch.arange(3),
        "a.y": torch.ones(2),
        "b.x": torch.zeros(1),
        "ab": torch.ones(1),
    }
    save_file(tensors, path)
    found = read(path, "a")
    assert sorted(found) == ["a.x", "a.y"]
    path.write_bytes(bytes(path.stat().st_size))  # The file's own bytes change.
    assert torch.equal(found["a.x"], tensors["a.x"])
