"""Files that want to run code, fill the memory or fool two readers."""

from __future__ import annotations

import functools
import io
import json
import operator
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fst_lightning.checkpoints import CheckpointError, read_checkpoint
from fst_lightning.checkpoints.pickle_scan import scan_pickle
from fst_lightning.checkpoints.torch_file import LEGACY_START
from tests.checkpoints.samples import (
    Calls,
    attack_result,
    make_net,
    ops,
    pickled,
    save_with,
    torch_zip,
)

# what each does when loaded with an ordinary unpickler: make the canary file
ATTACKS: dict[str, Callable[[str], object]] = {
    f"{os.system.__module__}.system": lambda canary: Calls(os.system, f"touch {canary}"),
    "builtins.eval": lambda canary: Calls(eval, f"open({canary!r}, 'w')"),
    "builtins.exec": lambda canary: Calls(exec, f"open({canary!r}, 'w')"),
    f"{open.__module__}.open": lambda canary: Calls(open, canary, "w"),
    "subprocess.call": lambda canary: Calls(subprocess.call, ["touch", canary]),
    "builtins.getattr": lambda canary: Calls(getattr, Calls(__import__, "os"), "system"),
    "functools.partial": lambda canary: Calls(functools.partial, os.system, f"touch {canary}"),
    "operator.methodcaller": lambda canary: Calls(operator.methodcaller, "touch", canary),
}
PLACES: dict[str, Callable[[object], object]] = {
    "root": lambda evil: evil,
    "state_dict": lambda evil: {**make_net().state_dict(), "fc.evil": evil},
    "wrapper": lambda evil: {"model": make_net().state_dict(), "x": [({"y": evil},)]},
    "hyper_parameters": lambda evil: {
        "pytorch-lightning_version": "2.6.6",
        "state_dict": make_net().state_dict(),
        "hyper_parameters": {"lr": evil},
    },
    "optimizer": lambda evil: {
        "pytorch-lightning_version": "2.6.6",
        "state_dict": make_net().state_dict(),
        "optimizer_states": [{"state": {0: evil}}],
    },
    "bench": lambda evil: {**attack_result(make_net()), "bd_train": evil},
}


def refused(path: Path, match: str, canary: Path | None = None) -> str:
    with pytest.raises(CheckpointError, match=match) as error:
        read_checkpoint(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert len(text) < 1_000
    assert canary is None or not canary.exists()
    return text


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("form", ["zip", "legacy", "zip4"])
def test_code_never_runs(tmp_path: Path, attack: str, place: str, form: str) -> None:
    canary = tmp_path / "canary"
    value = PLACES[place](ATTACKS[attack](str(canary)))
    path = tmp_path / "a.pt"
    if form == "zip4":
        torch.save(value, path, pickle_protocol=4)
    else:
        save_with(path, value, legacy=form == "legacy")
    text = refused(path, "could run code when loaded", canary)
    assert f"`{attack}`" in text


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("inside", [False, True])
def test_bare_pickles_of_every_protocol(tmp_path: Path, protocol: int, inside: bool) -> None:
    canary = tmp_path / "canary"
    data = pickled(Calls(os.system, f"touch {canary}"), protocol)
    path = tmp_path / "a.pt"
    if inside:
        torch_zip(path, data)
    else:
        path.write_bytes(data)
    assert f"`{os.system.__module__}.system`" in refused(path, "could run code", canary)


def test_names_that_hide(tmp_path: Path) -> None:
    """Names built on the stack, found through the memo or asked for by old instructions."""
    hidden = [
        ops("posix", b"q\x00", "system", b"q\x01", b"h\x00", b"h\x01", b"\x93", "id", b"\x85R"),
        ops("system", b"0", "posix", "system", b"\x93", "id", b"\x85R"),
        ops(b"(", "id", b"iposix\nsystem\n"),
        ops(b"(cposix\nsystem\n", "id", b"o"),
        ops(("posix", "system"), b"\x85\x94", ("posix", "system"), b")\x81"),
    ]
    for data in hidden:
        text = refused(torch_zip(tmp_path / "a.pt", data), "could run code")
        assert "`posix.system`" in text
    for data in (ops(1, 2, b"\x93"), ops(b"\x82\x01"), ops(("torch._utils x", "y z"))):
        refused(torch_zip(tmp_path / "a.pt", data), "asks Python for")


def test_a_late_name_is_told_before_a_broken_start(tmp_path: Path) -> None:
    data = ops(b"u", b"0", ("posix", "system"))
    assert "`posix.system`" in refused(torch_zip(tmp_path / "a.pt", data), "run code")
    cut = ops(("posix", "system"), "id", b"\x85R")[:-3]
    assert "`posix.system`" in refused(torch_zip(tmp_path / "a.pt", cut), "run code")


def test_names_cannot_control_the_terminal(tmp_path: Path) -> None:
    data = ops(b"cos\x1b[2J\x07\nsystem\n")
    text = refused(torch_zip(tmp_path / "a.pt", data), "asks Python for")
    assert text.isprintable()


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("make", [Custom, lambda: nn.Linear(2, 2), make_net])
def test_whole_models(
    tmp_path: Path, legacy: bool, wrap: bool, make: Callable[[], nn.Module]
) -> None:
    model = make()
    path = save_with(tmp_path / "a.pt", {"model": model} if wrap else model, legacy=legacy)
    text = refused(path, "holds a whole pickled model")
    assert "which runs code when loaded" in text
    assert "torch.save(model.state_dict(), ...)" in text


def test_an_evil_model_is_called_evil(tmp_path: Path) -> None:
    model: Any = nn.Linear(2, 2)
    model.extra = Calls(os.system, f"touch {tmp_path / 'canary'}")
    refused(save_with(tmp_path / "a.pt", model), "could run code", tmp_path / "canary")


def test_allowed_names_with_other_arguments(tmp_path: Path) -> None:
    """Each of these is a call that torch's own restricted unpickler would make."""
    huge = 2**34
    tuple1, reduce = b"\x85", b"R"
    calls = [
        ops(("__builtin__", "bytearray"), huge, tuple1, reduce),
        ops(("torch", "Tensor"), 100_000, 100_000, b"\x86", reduce),
        ops(("torch", "FloatStorage"), huge, tuple1, reduce),
        ops(("torch.storage", "UntypedStorage"), huge, tuple1, reduce),
        ops(("torch._utils", "_rebuild_meta_tensor_no_storage"), b")", reduce),
        ops(("torch._tensor", "_rebuild_from_type_v2"), b")", reduce),
        ops(("_codecs", "encode"), "a", "zlib_codec", b"\x86", reduce),
        ops(("_codecs", "encode"), "a", "this.is.imported", b"\x86", reduce),
        ops(("collections", "Counter"), "text", tuple1, reduce),
        ops(("__builtin__", "set"), b"](])a", tuple1, reduce),
        ops(("torch", "Size"), b"](", huge * huge, b"e", tuple1, reduce),
        ops(("collections", "OrderedDict"), b")R}", "items", 1, b"sb"),
        ops(("collections", "OrderedDict"), b")R}", "_metadata", 1, b"sb"),
        ops(b"}((", 1, b"t", 1, b"t", 1, b"s"),  # a nested tuple as a key: slow to hash
        ops(b"}]", 1, b"s"),
        ops(("posixpath", "join")),
        ops("storage", ("torch", "FloatStorage"), "0", "cpu", b"(ttQ"),
        ops(b"(", "module", ("torch", "FloatStorage"), "file", "source", b"tQ"),
        ops(2**100),
        ops(b"}}", 1, b"a"),
        b"\x80\x02}}u.",
    ]
    for number, data in enumerate(calls):
        path = torch_zip(tmp_path / f"{number}.pt", data)
        refused(path, r"\.pt: ")
        assert not scan_fails_open(data), number


def scan_fails_open(data: bytes) -> bool:
    from fst_lightning.checkpoints.errors import Refusal

    try:
        scan_pickle(data)
    except Refusal:
        return False
    return True


def read_in_little_memory(paths: list[Path], mebibytes: int = 1500) -> list[str]:
    """Return the kind of error for each file, read by a process that may hardly grow."""
    code = (
        "import resource, sys, torch, numpy\n"
        "from fst_lightning.checkpoints import read_checkpoint\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        f"limit = used + {mebibytes} * 2**20\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n"
        "        read_checkpoint(path)\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__, error)\n"
        "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print((after - before) // 1024)\n"
    )
    command = [sys.executable, "-c", code, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *messages, grown = done.stdout.splitlines()
    assert int(grown) < 400, done.stdout
    return messages


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="counts pages as Linux does")
def test_bombs_take_no_memory(tmp_path: Path) -> None:
    legacy = save_with(tmp_path / "legacy.pt", {"w": torch.zeros(4)}, legacy=True)
    legacy.write_bytes(lying_legacy(legacy.read_bytes()))
    bombs = [
        legacy,
        torch_zip(tmp_path / "numpy.pt", numpy_bomb(2**34), {"0": b"\0" * 4}),
        torch_zip(tmp_path / "copies.pt", copies()),
        torch_zip(tmp_path / "view.pt", tensor_pickle(4, 2**33, 0), {"0": b"\0" * 16}),
    ]
    messages = read_in_little_memory(bombs)
    assert len(messages) == len(bombs)
    assert all(message.startswith("CheckpointError") for message in messages)


def numpy_bomb(shape: int) -> bytes:
    tail = ops(
        b"}(",
        "model_name",
        "x",
        "num_classes",
        3,
        "bd_train",
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        shape,
        b"\x85",
        ("_codecs", "encode"),
        "b",
        "latin1",
        b"\x86R\x87R",
        "model",
        b"}",
        "w",
        ("torch._utils", "_rebuild_tensor_v2"),
        b"((",
        "storage",
        ("torch", "FloatStorage"),
        "0",
        "cpu",
        1,
        b"tQ",
        0,
        1,
        b"\x85",
        1,
        b"\x85\x89",
        ("collections", "OrderedDict"),
        b")RtRsu",
    )
    return tail


def test_numpy_bomb(tmp_path: Path) -> None:
    harmless = torch_zip(tmp_path / "harmless.pt", numpy_bomb(0), {"0": b"\0" * 4})
    assert read_checkpoint(harmless).extra["num_classes"] == 3
    bomb = torch_zip(tmp_path / "bomb.pt", numpy_bomb(2**34), {"0": b"\0" * 4})
    refused(bomb, r"calls `numpy\._core\.multiarray\._reconstruct` with arguments")


def test_numpy_states_must_fit_their_bytes(tmp_path: Path) -> None:
    good = pickled(np.arange(3, dtype=np.int64))
    assert scan_pickle(good).numpy is not None
    for old, new in ((b"K\x03\x85", b"K\x04\x85"), (b"i8", b"i2"), (b"i8", b"O8"), (b"i8", b"V8")):
        assert old in good
        assert not scan_fails_open(good.replace(old, new, 1))
    for value in (np.array(["text"]), np.datetime64(1, "s"), np.zeros(1, dtype=[("a", "i4")])):
        assert not scan_fails_open(pickled(value))
    assert not scan_fails_open(pickled(np.array([os], dtype=object)[:0]))


def copies() -> bytes:
    text = "x" * 2**20
    once = ops(("_codecs", "encode"), b"q\x00", text, "latin1", b"\x86q\x01R")
    assert scan_pickle(once).root == text.encode()
    return once[:-1] + b"h\x00h\x01R" * 20_000 + b"."


def test_copies_of_copies(tmp_path: Path) -> None:
    """A long text in the memo, copied by thousands of tiny calls."""
    refused(torch_zip(tmp_path / "bomb.pt", copies()), "made to fill the memory")


def tensor_pickle(numel: int, size: int, stride: int, offset: int = 0, many: int = 1) -> bytes:
    parts: list[Any] = [b"}("]
    for number in range(many):
        parts += [
            f"w{number}",
            ("torch._utils", "_rebuild_tensor_v2"),
            b"((",
            "storage",
            ("torch", "FloatStorage"),
            "0",
            "cpu",
            numel,
            b"tQ",
            offset,
            size,
            b"\x85",
            stride,
            b"\x85\x89",
            ("collections", "OrderedDict"),
            b")RtR",
        ]
    return ops(*parts, b"u")


def test_tensors_must_fit_their_data(tmp_path: Path) -> None:
    data = {"0": b"\0" * 16}
    path = tmp_path / "a.pt"
    assert read_checkpoint(torch_zip(path, tensor_pickle(4, 4, 1), data)).tensors["w0"].numel() == 4
    for numel, size, stride, offset in (
        (4, 5, 1, 0),
        (4, 4, 1, 1),
        (4, 2, 2**40, 0),
        (4, -1, 1, 0),
    ):
        refused(torch_zip(path, tensor_pickle(numel, size, stride, offset), data), "made to harm")
    for numel in (3, 5, 2**33):
        refused(torch_zip(path, tensor_pickle(numel, 1, 1), data), "another size")
    refused(torch_zip(path, tensor_pickle(4, 4, 1), {}), "another size")
    refused(torch_zip(path, tensor_pickle(4, 2**33, 0), data), "pose as tensors")
    refused(torch_zip(path, tensor_pickle(4, 2**21, 0, many=9), data), "pose as tensors")


def lying_legacy(content: bytes) -> bytes:
    assert content.count(b"K\x04Nt") == 1  # numel 4 in the storage's reference
    return content.replace(b"K\x04Nt", b"J\x00\x00\x00\x7fNt")


def test_legacy_sizes(tmp_path: Path) -> None:
    path = save_with(tmp_path / "a.pt", {"w": torch.zeros(4)}, legacy=True)
    content = path.read_bytes()
    assert content.startswith(LEGACY_START)
    path.write_bytes(lying_legacy(content))
    refused(path, "is cut short")


def write_zip(path: Path, *entries: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in (*entries, ("archive/version", b"3\n")):
            archive.writestr(name, content)
    return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_ambiguous_archives(tmp_path: Path) -> None:
    good = ("archive/data.pkl", tensor_pickle(4, 4, 1))
    evil = pickled(Calls(os.system, f"touch {tmp_path / 'canary'}"))
    data = ("archive/data/0", b"\0" * 16)
    path = tmp_path / "a.pt"
    read_checkpoint(write_zip(path, good, data))
    for second in ("archive/data.pkl", "archive/DATA.pkl", "other/data.pkl", "data.pkl"):
        refused(write_zip(path, good, data, (second, evil)), "ambiguous")
        refused(write_zip(path, (second, evil), good, data), "ambiguous")
    refused(write_zip(path, good, data, ("archive/code/a.py", b"")), "TorchScript")
    refused(write_zip(path, good, data, ("archive/constants.pkl", b"")), "TorchScript")
    content = write_zip(path, good, data).read_bytes()
    path.write_bytes(content + b"PK")
    refused(path, "no end record")
    path.write_bytes(content[:-2] + b"\x04\x00evil")
    refused(path, "no end record")
    path.write_bytes(content[:4] + content)
    refused(path, "bytes lie where")
    path.write_bytes(content.replace(b"archive/data.pkl", b"archive\\data.pkl"))
    refused(path, r"a\.pt: ")


def test_packed_archives(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    noise = torch.rand(64, generator=torch.Generator().manual_seed(0)).numpy().tobytes()
    good = ("archive/data.pkl", tensor_pickle(64, 64, 1))
    write_zip(path, good, ("archive/data/0", noise), method=zipfile.ZIP_DEFLATED)
    assert read_checkpoint(path).tensors["w0"].numpy().tobytes() == noise
    write_zip(path, good, ("archive/data/0", noise), method=zipfile.ZIP_LZMA)
    refused(path, "unusually packed")
    zeros = ("archive/data/0", b"\0" * 2**22)
    write_zip(path, good, zeros, method=zipfile.ZIP_DEFLATED)
    refused(path, "zip bomb")


def test_archive_that_claims_too_much(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    write_zip(path, ("archive/data.pkl", b"."), ("archive/data/0", b"\0" * 16))
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02")
    for packed, size in ((16, 2**31), (2**31, 2**31), (15, 15)):
        struct.pack_into("<2L", content, entry + 20, packed, size)
        path.write_bytes(content)
        refused(path, "(zip bomb|damaged)")


def test_a_pickle_with_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fst_lightning.checkpoints.pickle_scan._INSTRUCTION_LIMIT", 1_000)
    refused(torch_zip(tmp_path / "a.pt", ops(b"(" + b"]" * 2_000 + b"t")), "more than 1,000")
    monkeypatch.setattr("fst_lightning.checkpoints.archive.PICKLE_LIMIT", 100)
    refused(torch_zip(tmp_path / "a.pt", ops(b"(" + b"]" * 200 + b"t")), "holds a pickle of")


def safetensors_bytes(header: object, data: bytes = b"\0" * 16, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@pytest.mark.parametrize("length", [0, 1, 100, 10**6, 10**8 + 1, 2**40, 2**63, 2**64 - 1])
def test_safetensors_header_that_lies(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.safetensors"
    header = {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
    path.write_bytes(safetensors_bytes(header))
    assert read_checkpoint(path).tensors["w"].shape == (4,)
    path.write_bytes(safetensors_bytes(header, length=length))
    refused(path, r"(announces a safetensors header|damaged)")


@pytest.mark.parametrize(
    "header",
    [
        {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 2**40]}},
        {"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 16]}},
        {"w": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}},
        {"w": {"dtype": "X", "shape": [4], "data_offsets": [0, 16]}},
        {"w": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 16]}},
        {
            "v": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
            "w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        },
        {"__metadata__": {"fst_lightning": 3}},
        b"{" * 50_000,
        b"{}}",
        [],
    ],
    ids=range(10),
)
def test_safetensors_headers(tmp_path: Path, header: object) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors_bytes(header))
    refused(path, r"a\.safetensors: ")


def test_special_tensors_are_refused(tmp_path: Path) -> None:
    sparse = torch.eye(2).to_sparse()
    refused(save_with(tmp_path / "a.pt", {"w": torch.zeros(1), "s": sparse}), r"a\.pt: ")
    meta = torch.empty(2**40, device="meta")
    refused(save_with(tmp_path / "b.pt", {"w": torch.zeros(1), "s": meta}), r"b\.pt: ")
    long_name = {"x" * 1_001: torch.zeros(1)}
    refused(save_with(tmp_path / "c.pt", long_name), "Names are text")


def test_the_scan_agrees_with_pickle() -> None:
    """Independent check: what the scan describes is what `pickle` makes of harmless data."""
    value = {"a": [1, 2.5, (None, True)], "b": {"c": (1, 2, 3, 4)}, 3: -70_000, "d": 2**70}
    described = scan_pickle(pickled(value)).root

    def plain(node: Any) -> Any:
        if hasattr(node, "items"):
            return {key: plain(item) for key, item in node.items}
        if isinstance(node, list | tuple):
            return type(node)(plain(item) for item in node)
        return node

    assert plain(described) == pickle.load(io.BytesIO(pickled(value)))
