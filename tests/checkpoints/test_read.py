from __future__ import annotations

import argparse
import builtins
import collections
import contextlib
import datetime
import enum
import functools
import hashlib
import logging
import os
import pickle
import shutil
import subprocess
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.fabric.utilities.data import AttributeDict
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from fst_lightning.checkpoints import (
    CARD_KEY,
    CheckpointError,
    load_into,
    read_checkpoint,
    write_state,
)
from tests.checkpoints.samples import (
    attack_result,
    equal,
    make_card,
    make_net,
    pickled,
    save_with,
    torch_zip,
)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("key", [None, "state_dict", "model", "net", "model_state_dict", "weights"])
@pytest.mark.parametrize("name", ["a.pt", "a.bin", "a.safetensors", "a"])
def test_state_dicts_by_content(tmp_path: Path, legacy: bool, key: str | None, name: str) -> None:
    state = make_net().state_dict()
    value = state if key is None else {key: state, "epoch": 3, "acc": 0.5, "optimizer": {"lr": [1]}}
    checkpoint = read_checkpoint(save_with(tmp_path / name, value, legacy=legacy))
    assert checkpoint.format == "state_dict"
    assert checkpoint.card is None
    assert checkpoint.extra == {}
    assert equal(checkpoint.tensors, state)
    assert equal(checkpoint.state_dict, state)


def test_plain_values_and_parameters(tmp_path: Path) -> None:
    net = make_net()
    value = {
        "state_dict": dict(net.named_parameters()),
        "others": (1, 2.5, None, True, "text", 2**40, torch.float16, torch.Size([1, 2]), {1, "a"}),
        "device": torch.device("cpu"),
        "bytes": b"\x00\xff",
        "tensors": [torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.complex64)],
    }
    checkpoint = read_checkpoint(save_with(tmp_path / "a.pt", value))
    assert equal(checkpoint.tensors, dict(net.named_parameters()))
    assert not any(tensor.requires_grad for tensor in checkpoint.tensors.values())


def lightning(net: nn.Module) -> dict[str, Any]:
    state = {f"net.{name}": value for name, value in net.state_dict().items()}
    optimizer = torch.optim.Adam(net.parameters())
    net.requires_grad_()
    sum(p.sum() for p in net.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2])
    return {
        "epoch": 1,
        "global_step": 4,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": {**state, "metric.total": torch.tensor(3), "defense.anchor": torch.ones(2)},
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [scheduler.state_dict()],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 0.1, "betas": (0.9, 0.99)},
    }


@pytest.mark.parametrize("legacy", [False, True])
def test_lightning(tmp_path: Path, legacy: bool) -> None:
    net, other = make_net(), make_net(seed=1)
    value = lightning(net) | {CARD_KEY: make_card().to_json()}
    checkpoint = read_checkpoint(save_with(tmp_path / "a.ckpt", value, legacy=legacy))
    assert checkpoint.format == "lightning"
    assert checkpoint.card == make_card()
    key_map = load_into(other, checkpoint)
    assert equal(other.state_dict(), net.state_dict())
    assert key_map.prefix == "net."
    assert key_map.outside == ("metric.total", "defense.anchor")


def test_backdoorbench(tmp_path: Path) -> None:
    net, other = make_net(), make_net(seed=1)
    path = save_with(tmp_path / "attack_result.pt", attack_result(net))
    admitted = set(map(str, torch.serialization.get_safe_globals()))
    checkpoint = read_checkpoint(path)
    assert checkpoint.format == "backdoorbench"
    assert checkpoint.extra == {
        "model_name": "resnet18",
        "num_classes": 3,
        "img_size": (32, 32, 3),
    }
    assert type(checkpoint.extra["num_classes"]) is int
    load_into(other, checkpoint)
    assert equal(other.state_dict(), net.state_dict())
    assert set(map(str, torch.serialization.get_safe_globals())) == admitted  # for this file only


def test_backdoorbench_from_older_numpy(tmp_path: Path) -> None:
    net = make_net()
    path = save_with(tmp_path / "new.pt", attack_result(net))
    with zipfile.ZipFile(path) as archive:
        data = archive.read("new/data.pkl")
        tensors = {
            name.removeprefix("new/data/"): archive.read(name)
            for name in archive.namelist()
            if name.startswith("new/data/")
        }
    if np.lib.NumpyVersion(np.__version__) < "2.0.0":
        assert b"numpy.core.multiarray" in data  # this NumPy is the older one
    old = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    checkpoint = read_checkpoint(torch_zip(tmp_path / "old.pt", old, tensors))
    assert equal(checkpoint.tensors, net.state_dict())


class Settings(enum.Enum):
    FAST = "fast"


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _spring, ("sprung",)


sprung: list[str] = []


def _spring(text: str) -> str:
    sprung.append(text)
    return text


def endless() -> list[object]:
    """Returns a list in itself."""
    around: list[object] = []
    around.append((around,))
    return around


BESIDE: dict[str, Callable[[], object]] = {
    "partial": lambda: functools.partial(torch.optim.SGD, lr=0.1),
    "OmegaConf": lambda: OmegaConf.create({"a": [1, {"b": None}], "c": "${a}"}),
    "Path": lambda: Path("/data"),
    "key that is a Path": lambda: {Path("/data"): 1, (1, (2, 3)): 2},
    "Namespace": lambda: argparse.Namespace(lr=0.1, names=["a"]),
    "SimpleNamespace": lambda: types.SimpleNamespace(lr=0.1),
    "NumPy number": lambda: np.float64(91.2),
    "NumPy arrays": lambda: [np.zeros(3), np.array(["a"]), np.array([{}], dtype=object)],
    "random states": lambda: (np.random.default_rng(0), np.random.RandomState(0), 2**127),
    "image": lambda: [Image.new("RGB", (2, 2)), Image.new("L", (2, 2))],
    "AttributeDict": lambda: AttributeDict(lr=0.1),
    "defaultdict": lambda: collections.defaultdict(list, a=[1]),
    "deque": lambda: collections.deque([1, 2]),
    "enum": lambda: Settings.FAST,
    "logger": lambda: logging.getLogger("a"),
    "module": lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU()),
    "sparse tensor": lambda: torch.eye(2).to_sparse(),
    "timedelta": lambda: datetime.timedelta(1),
    "itself": endless,
    "trap": Trap,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("what", BESIDE)
def test_values_beside_the_weights_are_never_built(
    tmp_path: Path, what: str, legacy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are read, whatever the settings beside them are made of."""
    state = make_net().state_dict()
    value = {"args": BESIDE[what](), "state_dict": state, "last": [BESIDE[what]()]}
    path = save_with(tmp_path / "a.pt", value, legacy=legacy)
    monkeypatch.setattr(pickle, "Unpickler", None)
    monkeypatch.setattr(torch, "load", None)
    assert equal(read_checkpoint(path).tensors, state)
    assert not sprung
    if what != "itself":
        with pytest.raises(CheckpointError):
            read_checkpoint(path, plain=True)


@pytest.mark.filterwarnings("ignore")
def test_quantized_tensors_beside_the_weights(tmp_path: Path) -> None:
    state = make_net().state_dict()
    quantized = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    value = {"state_dict": state, "x": quantized}
    path = save_with(tmp_path / "a.pt", value)
    assert equal(read_checkpoint(path).tensors, state)
    # There, the place of a tensor's data depends on the size of all the data before it.
    with pytest.raises(CheckpointError, match="kind of tensor data"):
        read_checkpoint(save_with(path, value, legacy=True))


def test_foreign_values_among_the_weights_are_refused(tmp_path: Path) -> None:
    for what in ("trap", "Path", "NumPy arrays", "sparse tensor", "Namespace"):
        value = BESIDE[what]()
        state = {**make_net().state_dict(), "x": value[0] if isinstance(value, list) else value}
        with pytest.raises(CheckpointError, match=r"asks Python for|kind of tensor"):
            read_checkpoint(save_with(tmp_path / "a.pt", {"state_dict": state}))
    assert not sprung


def test_dangerous_names_beside_the_weights_are_refused(tmp_path: Path) -> None:
    """Nothing would run; but such a file was made to harm whoever loads it with pickle."""
    for function in (os.system, eval, exec, subprocess.run, builtins.__import__, shutil.rmtree):
        value = {"state_dict": make_net().state_dict(), "args": functools.partial(function, "x")}
        with pytest.raises(CheckpointError, match="could run code when loaded"):
            read_checkpoint(save_with(tmp_path / "a.pt", value))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_name", 3),
        ("model_name", "x" * 2_000),
        ("num_classes", 1),
        ("num_classes", "many"),
        ("num_classes", True),
        ("img_size", "32"),
        ("img_size", (0, 1)),
        ("img_size", (1.5,)),
    ],
)
def test_backdoorbench_facts_are_checked(tmp_path: Path, key: str, value: object) -> None:
    path = save_with(tmp_path / "a.pt", attack_result(make_net()) | {key: value})
    with pytest.raises(CheckpointError, match=key):
        read_checkpoint(path)


def test_safetensors_with_card(tmp_path: Path) -> None:
    state = make_net().state_dict()
    path = tmp_path / "weights"  # no suffix: the content decides
    write_state(path, state, card=make_card())
    checkpoint = read_checkpoint(path)
    assert checkpoint.format == "safetensors"
    assert checkpoint.card == make_card()
    assert equal(checkpoint.tensors, state)


def test_reading_outlives_and_spares_the_file(tmp_path: Path) -> None:
    state = make_net().state_dict()
    for path in (tmp_path / "a.safetensors", save_with(tmp_path / "a.pt", state)):
        if path.suffix == ".safetensors":
            write_state(path, state)
        path.chmod(0o444)
        before = hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns
        checkpoint = read_checkpoint(path)
        assert (hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns) == before
        path.chmod(0o644)
        path.write_bytes(b"\xff" * path.stat().st_size)
        assert equal(checkpoint.tensors, state)


def test_invalid_card(tmp_path: Path) -> None:
    value = {"state_dict": make_net().state_dict(), "pytorch-lightning_version": "2.6.6"}
    for card in ("{}", 3, "[1, 2]"):
        path = save_with(tmp_path / "a.ckpt", value | {CARD_KEY: card})
        with pytest.raises(CheckpointError, match=r"a\.ckpt: has "):
            read_checkpoint(path)


def test_no_file_at_all(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_checkpoint(tmp_path / "missing.pt")
    with pytest.raises(CheckpointError, match="is a folder"):
        read_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be opened"):
        read_checkpoint("a\0b")
    (tmp_path / "empty").touch()
    with pytest.raises(CheckpointError, match="is empty"):
        read_checkpoint(tmp_path / "empty")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="no regular file"):
        read_checkpoint(tmp_path / "pipe")
    os.truncate(tmp_path / "empty", 21 * 2**30)  # sparse: takes no room
    with pytest.raises(CheckpointError, match="are the limit"):
        read_checkpoint(tmp_path / "empty")


@pytest.mark.parametrize(
    "value",
    [{}, [], "text", 3, torch.zeros(3), {"a": 1}, {"state_dict": {}}, {1: torch.zeros(1)}, [[]]],
    ids=str,
)
@pytest.mark.parametrize("legacy", [False, True])
def test_files_without_a_state_dict(tmp_path: Path, value: object, legacy: bool) -> None:
    with pytest.raises(CheckpointError, match=r"(state_dict|dictionary)"):
        read_checkpoint(save_with(tmp_path / "a.pt", value, legacy=legacy))


@pytest.mark.parametrize(
    "content",
    [b"x", b"hello world, this is text", b"\x89HDF\r\n\x1a\n" + b"\0" * 64, b"PK\x03\x04", b"{}"],
)
def test_other_formats(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.pt: "):
        read_checkpoint(path)
    np.savez(tmp_path / "a.npz", a=np.zeros(3))
    with pytest.raises(CheckpointError, match=r"not one that torch\.save wrote"):
        read_checkpoint(tmp_path / "a.npz")
    path.write_bytes(pickled({"a": 1}))
    with pytest.raises(CheckpointError, match="bare pickle"):
        read_checkpoint(path)


@settings(max_examples=150, deadline=None)
@given(
    which=st.integers(0, 1),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_altered_pickles_with_right_checksums(
    tmp_path_factory: pytest.TempPathFactory, which: int, changes: list[tuple[float, int]]
) -> None:
    base = tmp_path_factory.getbasetemp()
    net = nn.Linear(2, 3)
    path = save_with(base / "good.pt", [net.state_dict(), attack_result(net)][which])
    with zipfile.ZipFile(path) as archive:
        data = bytearray(archive.read("good/data.pkl"))
        tensors = {
            name.removeprefix("good/data/"): archive.read(name)
            for name in archive.namelist()
            if name.startswith("good/data/")
        }
    for where, byte in changes:
        data[min(int(where * len(data)), len(data) - 1)] = byte
    with contextlib.suppress(CheckpointError):
        load_into(net, read_checkpoint(torch_zip(base / "altered.pt", bytes(data), tensors)))


def test_a_flipped_weight_is_noticed(tmp_path: Path) -> None:
    state = {"a": torch.full((64,), 7.0)}
    path = save_with(tmp_path / "a.pt", state)
    content = bytearray(path.read_bytes())
    content[content.index(state["a"].numpy().tobytes()) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="CRC"):
        read_checkpoint(path)


@settings(max_examples=150, deadline=None)
@given(
    start=st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x04", b"\x10" + b"\0" * 7]),
    rest=st.binary(max_size=200),
)
def test_noise(tmp_path_factory: pytest.TempPathFactory, start: bytes, rest: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "noise"
    path.write_bytes(start + rest)
    with pytest.raises(CheckpointError):
        read_checkpoint(path)
