"""Tensors are made from their bytes as ``torch.load`` makes them: the independent check."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fst_lightning.checkpoints import CheckpointError, read_checkpoint
from tests.checkpoints.samples import save_with, torch_zip

DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.complex64, torch.complex128),
]


def numbers(dtype: torch.dtype, *shape: int) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 50
    return (values > 0) if dtype == torch.bool else values.to(dtype)


def same(one: Tensor, other: Tensor) -> bool:
    layouts = [(t.dtype, t.shape, t.stride(), t.storage_offset()) for t in (one, other)]
    return layouts[0] == layouts[1] and torch.equal(one, other)


@st.composite
def views(draw: st.DrawFn) -> Tensor:
    """Any view of a few numbers: sliced, turned, expanded, empty, of no dimension."""
    sizes = draw(st.lists(st.integers(0, 4), max_size=3))
    tensor = numbers(draw(st.sampled_from(DTYPES)), *sizes)
    for _ in range(draw(st.integers(0, 3))):
        if tensor.dim() == 0:
            tensor = tensor.expand(draw(st.integers(0, 3)))
            continue
        axis = draw(st.integers(0, tensor.dim() - 1))
        kind = draw(st.sampled_from(["slice", "turn", "select", "expand"]))
        if kind == "slice":
            every = slice(draw(st.integers(0, 2)), None, draw(st.integers(1, 2)))
            tensor = tensor[(slice(None),) * axis + (every,)]
        elif kind == "turn":
            tensor = tensor.transpose(0, axis)
        elif kind == "select" and tensor.shape[axis]:
            tensor = tensor.select(axis, draw(st.integers(0, tensor.shape[axis] - 1)))
        elif kind == "expand":
            tensor = tensor.unsqueeze(axis).expand(
                *tensor.shape[:axis], draw(st.integers(0, 3)), *tensor.shape[axis:]
            )
    return tensor


@settings(max_examples=100, deadline=None)
@given(tensors=st.lists(views(), min_size=1, max_size=4), legacy=st.booleans())
def test_as_torch_load(
    tmp_path_factory: pytest.TempPathFactory, tensors: list[Tensor], legacy: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "views.pt"
    state = {f"t{number}": tensor for number, tensor in enumerate(tensors)}
    state |= {"whole": tensors[0], "w": torch.ones(2, 2)}  # two names of one memory
    save_with(path, state, legacy=legacy)
    found, expected = read_checkpoint(path).tensors, torch.load(path, weights_only=True)
    assert found.keys() == expected.keys()
    assert all(same(tensor, expected[name]) for name, tensor in found.items())
    assert found["t0"].untyped_storage().data_ptr() == found["whole"].untyped_storage().data_ptr()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_file_of_a_big_endian_machine(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {"a": numbers(dtype, 5), "w": numbers(dtype, 2, 2)}
    path = save_with(tmp_path / "a.pt", state)
    with zipfile.ZipFile(path) as archive:
        data = archive.read("a/data.pkl")
        entries = {key: archive.read(f"a/data/{key}") for key in ("0", "1")}
    size = dtype.itemsize // (2 if dtype.is_complex else 1)
    swapped = {
        key: b"".join(content[i : i + size][::-1] for i in range(0, len(content), size))
        for key, content in entries.items()
    }
    torch_zip(path, data, swapped, order="big")
    found = read_checkpoint(path).tensors
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    expected = torch.load(path, weights_only=True)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    torch_zip(path, data, entries, order="middle")
    with pytest.raises(CheckpointError, match="byte order is `b'middle'`"):
        read_checkpoint(path)


def test_only_the_wanted_tensors_are_read(tmp_path: Path) -> None:
    """What else is in a file takes no memory, even if it is damaged."""
    state = {"w": torch.ones(2, 2)}
    path = save_with(tmp_path / "a.pt", {"model": state, "optimizer": {0: torch.full((9,), 3.0)}})
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((9,), 3.0).numpy().tobytes()) + 5] ^= 1
    path.write_bytes(content)
    assert torch.equal(read_checkpoint(path).tensors["w"], state["w"])
