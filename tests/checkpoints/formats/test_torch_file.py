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
from fst_lightning.checkpoints.formats import torch_file
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


def edited(path: Path, old: bytes, new: bytes, **data: bytes) -> Path:
    """Write the archive again with another pickle."""
    with zipfile.ZipFile(path) as archive:
        pickle = archive.read(f"{path.stem}/data.pkl")
        entries = {"0": archive.read(f"{path.stem}/data/0")}
    assert old in pickle
    return torch_zip(path, pickle.replace(old, new), entries | data)


@pytest.mark.parametrize("data", [bytes(15), bytes(17), b""])
def test_data_of_another_length(tmp_path: Path, data: bytes) -> None:
    path = save_with(tmp_path / "a.pt", {"w": torch.ones(2, 2)})
    with pytest.raises(CheckpointError, match="`0` has another size"):
        read_checkpoint(edited(path, b"", b"", **{"0": data}))


def test_data_that_is_not_there(tmp_path: Path) -> None:
    path = save_with(tmp_path / "a.pt", {"w": torch.ones(2, 2)})
    with pytest.raises(CheckpointError, match="`1` has another size"):
        read_checkpoint(edited(path, b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x001"))


def test_data_in_a_legacy_file(tmp_path: Path) -> None:
    path = save_with(tmp_path / "a.pth", {"w": torch.ones(2, 2)}, legacy=True)
    content = path.read_bytes()
    assert content[-24:-16] == (4).to_bytes(8, "little")
    path.write_bytes(content[:-24] + (5).to_bytes(8, "little") + content[-16:])
    with pytest.raises(CheckpointError, match="has another size"):
        read_checkpoint(path)
    path.write_bytes(content[:-1])
    with pytest.raises(
        CheckpointError, match="24 bytes of tensor data are announced, 23 are there"
    ):
        read_checkpoint(path)
    start = content.rindex(b"]q\x00X") + 8  # the last list has the key
    path.write_bytes(content[:start] + b"x" + content[start + 1 :])
    with pytest.raises(CheckpointError, match="the list of its tensor data does not fit"):
        read_checkpoint(path)


def test_a_file_that_torch_load_takes(tmp_path: Path) -> None:
    """`plain` refuses what it would not, also beside the weights."""
    good = save_with(tmp_path / "a.pt", {"w": torch.ones(2, 2)})
    assert "w" in read_checkpoint(good, plain=True).tensors
    model = {"w": torch.ones(2, 2)}
    foreign = save_with(tmp_path / "b.pt", {"model": model, "beside": Path("x")})
    odd = save_with(tmp_path / "c.pt", {"model": model, "beside": {(1, 2): 3}})
    for path in (foreign, odd):
        assert "w" in read_checkpoint(path).tensors
        with pytest.raises(CheckpointError):
            read_checkpoint(path, plain=True)


def test_names_beside_those_that_are_wanted(tmp_path: Path) -> None:
    state = {"a.w": torch.ones(2, 2), "b.w": Path("x"), 3: Path("x"), "ab": Path("x")}
    path = save_with(tmp_path / "a.pt", {"model": state})
    assert list(read_checkpoint(path, "a").tensors) == ["a.w"]
    with pytest.raises(CheckpointError, match="asks Python for"):
        read_checkpoint(path)


def test_what_tensors_may_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times the data, and 16 MB in any case."""
    assert (torch_file._ALWAYS_ALLOWED, torch_file._SHARING_LIMIT) == (16 * 2**20, 4)
    stored = torch.ones(2, 2)
    path = save_with(tmp_path / "a.pt", {str(number): stored for number in range(5)})
    monkeypatch.setattr(torch_file, "_ALWAYS_ALLOWED", 16)
    assert len(read_checkpoint(path).tensors) == 5
    monkeypatch.setattr(torch_file, "_ALWAYS_ALLOWED", 15)
    with pytest.raises(CheckpointError, match="16 bytes of data pose as tensors of 80 bytes"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("changes", "good"),
    [
        ({"model_name": "x" * 1_000}, True),
        ({"model_name": "x" * 1_001}, False),
        ({"model_name": "a\x1b"}, False),
        ({"num_classes": 2}, True),
        ({"num_classes": 100_000}, True),
        ({"num_classes": 1}, False),
        ({"num_classes": 100_001}, False),
        ({"img_size": (4_096,)}, True),
        ({"img_size": [1, 1, 1, 1]}, True),
        ({"img_size": None}, True),
        ({"img_size": (4_097,)}, False),
        ({"img_size": (0,)}, False),
        ({"img_size": ()}, False),
        ({"img_size": (1,) * 5}, False),
        ({"img_size": 32}, False),
    ],
)
def test_facts_of_backdoorbench(tmp_path: Path, changes: dict[str, object], good: bool) -> None:
    value = {"model_name": "resnet18", "num_classes": 3, "model": {"w": torch.ones(2, 2)}} | changes
    path = save_with(tmp_path / "attack_result.pt", value)
    if not good:
        with pytest.raises(CheckpointError):
            read_checkpoint(path)
        return
    expected = {name: value[name] for name in ("model_name", "num_classes")}
    if (size := changes.get("img_size")) is not None:
        expected["img_size"] = tuple(size)  # type: ignore[arg-type]
    assert read_checkpoint(path).extra == expected
