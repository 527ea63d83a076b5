"""Faulty checkpoints: one generator a fault, for each format that is read."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fst_lightning.checkpoints import (
    CARD_KEY,
    load_into,
    read_checkpoint,
    write_state,
)
from tests.checkpoints.samples import (
    Calls,
    attack_result,
    make_card,
    make_net,
    ops,
    pickled,
    save_with,
    torch_zip,
)
from tests.hostile.case import CANARY, Case, Kind
from tests.hostile.damage import damaged
from tests.hostile.pickles import GADGETS, INSTRUCTIONS, UNKNOWN, bare

_PLACE = "here stands the evil"
_EVIL = r"could run code when loaded|asks Python for"


def load(path: Path) -> object:
    """The program's way of a checkpoint into a network."""
    return load_into(make_net(), read_checkpoint(path))


# Good files, with a place for something evil


def state(**more: object) -> dict[str, object]:
    return {**make_net().state_dict(), **more}


def lightning(**more: object) -> dict[str, object]:
    return {
        "pytorch-lightning_version": "2.6.6",
        "epoch": 3,
        "state_dict": {f"net.{name}": value for name, value in state().items()},
        "hyper_parameters": {"lr": 0.1},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": []}],
        "callbacks": {},
        CARD_KEY: make_card().to_json(),
        **more,
    }


def bench(**more: object) -> dict[str, object]:
    return attack_result(make_net()) | more


def _safetensors(path: Path) -> None:
    write_state(path, make_net().state_dict(), card=make_card())


SAFETENSORS = Kind("safetensors", "a.safetensors", load, _safetensors)
LIGHTNING = Kind("Lightning .ckpt", "a.ckpt", load, lambda path: save_with(path, lightning()))
ZIP = Kind("state_dict .pt, zip", "a.pt", load, lambda path: save_with(path, state()))
LEGACY = Kind(
    "state_dict .pth, legacy",
    "a.pth",
    load,
    lambda path: save_with(path, state(), legacy=True),
)
BENCH = Kind(
    "BackdoorBench attack_result.pt",
    "attack_result.pt",
    load,
    lambda path: save_with(path, bench()),
)
FILES = (SAFETENSORS, LIGHTNING, ZIP, LEGACY, BENCH)


def hub(path: Path, config: object, weights: Callable[[Path], object] = _safetensors) -> None:
    """A folder as timm writes it."""
    path.mkdir()
    weights(path / ("model.safetensors" if weights is _safetensors else "pytorch_model.bin"))
    text = config if isinstance(config, str) else json.dumps(config)
    (path / "config.json").write_text(text, encoding="utf-8")


def hub_config(**more: object) -> dict[str, object]:
    training = {"input_size": [3, 8, 8], "mean": [0.5] * 3, "std": [0.5] * 3, "classifier": "fc"}
    config = {"architecture": "resnet18", "num_classes": 3, "pretrained_cfg": training}
    return {**config, "label_names": ["a", "b", "c"], **more}


HUB = Kind("folder of the Hub", "folder", load, partial(hub, config=hub_config()))
KINDS = (*FILES, HUB)

_PLACES: dict[str, tuple[Kind, Callable[[], dict[str, object]]]] = {
    "hyper_parameters": (LIGHTNING, lambda: lightning(hyper_parameters={"lr": _PLACE})),
    "optimizer_states": (
        LIGHTNING,
        lambda: lightning(optimizer_states=[{"state": {0: {"step": [_PLACE]}}}]),
    ),
    "callbacks": (LIGHTNING, lambda: lightning(callbacks={"ModelCheckpoint": {"x": _PLACE}})),
    "lr_schedulers": (LIGHTNING, lambda: lightning(lr_schedulers=[(_PLACE,)])),
    "its state_dict": (
        LIGHTNING,
        lambda: lightning(state_dict={"net.fc.weight": torch.zeros(1), "x": _PLACE}),
    ),
    "state_dict": (ZIP, lambda: state(evil=_PLACE)),
    "under `model`": (ZIP, lambda: {"model": state(), "other": [{"y": (_PLACE,)}]}),
    "old state_dict": (LEGACY, lambda: state(evil=_PLACE)),
    "poisoned data": (BENCH, lambda: bench(bd_train=_PLACE)),
    "names of the data": (BENCH, lambda: bench(clean_data=_PLACE)),
}
_WEIGHTS = ("its state_dict", "state_dict", "old state_dict")
_FIRST = {LIGHTNING: "hyper_parameters", ZIP: "state_dict", LEGACY: "old state_dict"}
_FIRST[BENCH] = "poisoned data"


def planted(path: Path, value: object, body: bytes, *, legacy: bool) -> None:
    """Save a value, and put instructions in the place of its marker."""
    marker = pickle.dumps(_PLACE, 2)[2:]
    marker = marker[: marker.index(_PLACE.encode()) + len(_PLACE)]
    save_with(path, value, legacy=legacy)
    if legacy:
        content = path.read_bytes()
        assert content.count(marker) == 1
        path.write_bytes(content.replace(marker, body))
        return
    with zipfile.ZipFile(path) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    folder = next(iter(entries)).partition("/")[0]
    content = entries[f"{folder}/data.pkl"]
    assert content.count(marker) == 1
    tensors = {name.rpartition("/")[2]: data for name, data in entries.items() if "/data/" in name}
    torch_zip(path, content.replace(marker, body), tensors)


def running() -> Iterator[Case]:
    """Every gadget and instruction in one place of each format, and one in every place."""

    def case(place: str, fault: str, body: bytes, says: str | None) -> Case:
        kind, make = _PLACES[place]

        def write(path: Path) -> None:
            planted(path, make(), body, legacy=kind is LEGACY)

        return Case(kind.name, f"{fault} in {place}", write, says)

    for place in _FIRST.values():
        for fault, (body, said) in GADGETS.items():
            yield case(place, fault, body, f"asks Python for `{said}|{_EVIL}")
        for fault, body in INSTRUCTIONS.items():
            yield case(place, fault, body, rf"`(posix|os)\.mkdir`|{_EVIL}")
    for place in _PLACES:
        yield case(place, "a call", GADGETS["os.system"][0], "`posix.system`, which could run code")
        # beside the weights it is never built
        says = (
            "`tests.hostile.pickles.make_canary`, which is neither" if place in _WEIGHTS else None
        )
        yield case(place, "an unknown call", UNKNOWN, says)
    for protocol in range(6):
        data = pickled(Calls(os.mkdir, CANARY), protocol)
        yield Case(
            ZIP.name,
            f"bare pickle of protocol {protocol}",
            partial(Path.write_bytes, data=data),
            r"`posix\.mkdir`, which could run code",
        )
        yield Case(
            ZIP.name,
            f"pickle of protocol {protocol} in a zip file",
            partial(torch_zip, data=data),
            r"`posix\.mkdir`, which could run code",
        )
    body = GADGETS["os.mkdir"][0]
    yield Case(
        SAFETENSORS.name,
        "a pickle by that name",
        lambda path: path.write_bytes(bare(body)),
        "announces a safetensors header",
    )
    yield Case(
        SAFETENSORS.name,
        "a torch file by that name",
        lambda path: planted(path, state(evil=_PLACE), body, legacy=False),
        r"`posix\.mkdir`",
    )
    yield Case(ZIP.name, "a whole model", lambda path: save_with(path, make_net()), "whole pickled")
    evil = nn.Linear(2, 2)
    evil.extra = Calls(os.mkdir, CANARY)  # type: ignore[assignment]
    yield Case(
        ZIP.name,
        "an evil model",
        lambda path: save_with(path, evil),
        r"`posix\.mkdir`, which could",
    )
    yield Case(
        ZIP.name,
        "a whole model under a name",
        lambda path: save_with(path, {"model": nn.Linear(2, 2)}),
        "holds a whole pickled model",
    )
    yield Case(
        LEGACY.name,
        "a whole model",
        lambda path: save_with(path, nn.Linear(2, 2), legacy=True),
        "holds a whole pickled model",
    )


# Files that fill the memory


def tensor_pickle(numel: int, size: int, stride: int, offset: int = 0, many: int = 1) -> bytes:
    """A state_dict of views of one storage `0`, of float32."""
    parts: list[Any] = [b"}("]
    for number in range(many):
        parts += [
            *(f"w{number}", ("torch._utils", "_rebuild_tensor_v2"), b"(("),
            *("storage", ("torch", "FloatStorage"), "0", "cpu", numel, b"tQ"),
            *(offset, size, b"\x85", stride, b"\x85\x89"),
            *(("collections", "OrderedDict"), b")RtR"),
        ]
    return ops(*parts, b"u")


def numpy_bomb(shape: int) -> bytes:
    """BackdoorBench's dictionary with a NumPy array whose shape is asked for at once."""
    return ops(
        *(b"}(", "model_name", "x", "num_classes", 3, "bd_train"),
        *(("numpy._core.multiarray", "_reconstruct"), ("numpy", "ndarray"), shape, b"\x85"),
        *(("_codecs", "encode"), "b", "latin1", b"\x86R\x87R", "model", b"}", "w"),
        *(("torch._utils", "_rebuild_tensor_v2"), b"((", "storage", ("torch", "FloatStorage")),
        *("0", "cpu", 1, b"tQ", 0, 1, b"\x85", 1, b"\x85\x89"),
        *(("collections", "OrderedDict"), b")RtRsu"),
    )


def _zip(path: Path, entries: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in [*entries, ("archive/version", b"3\n")]:
            archive.writestr(name, content)


def _deflated(path: Path, length: int, noise: int) -> None:
    """Tensor data that packs about (2^20 / noise)-fold."""
    random = np.random.default_rng(0).integers(0, 256, noise, dtype=np.uint8).tobytes()
    block = random + bytes(2**20 - noise)
    numel = length // 4
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", tensor_pickle(numel, numel, 1))
        with archive.open("archive/data/0", "w", force_zip64=True) as stream:
            for _ in range(length // 2**20):
                stream.write(block)
        archive.writestr("archive/version", "3\n")


def _directory_only(path: Path) -> None:
    """A zip file that announces one entry and lists 1.4 million."""
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", *(20, 0, 20, 0), *[0] * 14)[:46]
    listed = (46 * b"\0" if len(entry) != 46 else entry) * 1_400_000
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(listed), 4, 0)
    path.write_bytes(b"PK\x03\x04" + listed + end)


def _lying_legacy(path: Path) -> None:
    save_with(path, {"w": torch.zeros(4)}, legacy=True)
    content = path.read_bytes()
    assert content.count(b"K\x04Nt") == 1  # numel 4 in the storage's reference
    path.write_bytes(content.replace(b"K\x04Nt", b"J\x00\x00\x00\x7fNt"))


Body = bytes | Callable[[], bytes]
"""Instructions of a pickle; a function where they are large, so that few are held at a time."""


def _pickle(body: Body) -> bytes:
    return bare(body if isinstance(body, bytes) else body())


def _new_file(path: Path, body: Body) -> None:
    torch_zip(path, _pickle(body))


def _old_file(path: Path, body: Body) -> None:
    facts = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    head = [torch.serialization.MAGIC_NUMBER, 1001, facts]
    path.write_bytes(b"".join(map(pickled, head)) + _pickle(body) + pickled([]))


def filling() -> Iterator[Case]:
    """Small files that ask for a lot."""
    many = 4_900_000
    bodies: dict[str, bytes] = {
        "an integer of a megabyte": b"\x8b\x00\x00\x10\x00" + b"\x7f" * 2**20,
        "a bytearray": ops(("__builtin__", "bytearray"), 2**34, b"\x85R")[2:-1],
        "an empty tensor of torch": ops(("torch", "Tensor"), 100_000, 100_000, b"\x86R")[2:-1],
        "a storage": ops(("torch", "FloatStorage"), 2**34, b"\x85R")[2:-1],
        "an untyped storage": ops(("torch.storage", "UntypedStorage"), 2**34, b"\x85R")[2:-1],
        "a codec that unpacks": ops(("_codecs", "encode"), "a", "zlib_codec", b"\x86R")[2:-1],
        "a tuple as a key of tuples": ops(b"}((", 1, b"t", 1, b"t", 1, b"s")[2:-1],
        "an integer of 17 bytes": ops(2**100)[2:-1],
        "copies of a long text": _copies(),
    }
    for fault, body in bodies.items():
        yield Case(ZIP.name, fault, partial(_new_file, body=body))
        yield Case(LEGACY.name, fault, partial(_old_file, body=body))
    for fault, body, says in (
        ("tuples as keys that hash alike", _alike(12), "neither text nor a number"),
        ("tuples in a set that hash alike", _alike(12, in_set=True), "arguments that no ordinary"),
    ):
        yield Case(ZIP.name, fault, partial(_new_file, body=body), says)
        yield Case(LEGACY.name, fault, partial(_old_file, body=body), says)
    large: dict[str, Callable[[], bytes]] = {
        "five million empty lists": lambda: b"(" + b"]" * many + b"t",
        "five million empty dictionaries": lambda: b"(" + b"}" * many + b"t",
        "five million marks": lambda: b"(" * many + b"t",
        "tuples in tuples": lambda: b")" + b"\x85" * many,
        "a long integer by the million": lambda: b"(" + b"J\xff\xff\xff\x7f" * many + b"t",
        "a text of wide letters": lambda: _wide(60_000_000),
        "names by the million": lambda: b"(" + b"ca\nb\n" * 4_000_000 + b"t",
        "calls of as many functions": lambda: (
            b"(" + b"".join(b"ca\n%x\n)R" % number for number in range(1_500_000)) + b"t"
        ),
        "ordered dictionaries": lambda: (
            b"ccollections\nOrderedDict\nq\0(" + b"h\0)R" * 1_000_000 + b"t"
        ),
        "200,000 numbers as keys": lambda: (
            b"}(" + b"".join(b"J" + struct.pack("<i", n) + b"N" for n in range(200_000)) + b"u"
        ),
        "more than five million instructions": lambda: b"N0" * 2_600_000 + b"}",
        "a pickle of 80 MB": lambda: _wide(80_000_000),
    }
    for fault, make in large.items():
        yield Case(
            ZIP.name,
            fault,
            partial(_new_file, body=make),
            heavy=True,
        )
    for fault in ("five million empty dictionaries", "a text of wide letters", "a pickle of 80 MB"):
        yield Case(LEGACY.name, fault, partial(_old_file, body=large[fault]), heavy=True)
    yield Case(
        BENCH.name,
        "an empty NumPy array",
        partial(torch_zip, data=numpy_bomb(0), tensors={"0": bytes(4)}),
        "none of its names",  # it is read, and fits no network
    )
    for shape in (2**34, 2**62):
        yield Case(
            BENCH.name,
            f"a NumPy array of {shape:,} numbers",
            partial(torch_zip, data=numpy_bomb(shape), tensors={"0": bytes(4)}),
            "none of its names",  # it is read, and the array is never built
        )
    yield Case(LEGACY.name, "storage of 8 GB in 500 bytes", _lying_legacy, "is cut short")
    data = {"0": b"\0" * 16}
    views: dict[str, tuple[bytes, dict[str, bytes], str]] = {
        "a view that fits": (tensor_pickle(4, 4, 1), data, "none of its names"),
        "a view of 2^33 numbers": (tensor_pickle(4, 2**33, 0), data, "pose as tensors"),
        "nine views of 2^21 numbers": (
            tensor_pickle(4, 2**21, 0, many=9),
            data,
            "pose as tensors",
        ),
        "a tensor past its data": (tensor_pickle(4, 5, 1), data, "made to harm"),
        "an offset past its data": (tensor_pickle(4, 4, 1, offset=1), data, "made to harm"),
        "a stride past its data": (tensor_pickle(4, 2, 2**40), data, "made to harm"),
        "a negative size": (tensor_pickle(4, -1, 1), data, "made to harm"),
        "a storage larger than its data": (tensor_pickle(2**33, 1, 1), data, "another size"),
        "a storage without data": (tensor_pickle(4, 4, 1), {}, "another size"),
    }
    for fault, (body, content, says) in views.items():
        yield Case(
            ZIP.name,
            fault,
            partial(torch_zip, data=body, tensors=content),
            says,
        )
    for fault, length, noise in (("1000-fold", 2**26, 16), ("60-fold", 2**28, 17_000)):
        yield Case(
            ZIP.name,
            f"zip bomb, {fault}",
            partial(_deflated, length=length, noise=noise),
            "is a zip bomb",
            heavy=True,
        )
    yield Case(ZIP.name, "a list of 1.4 million entries", _directory_only, "limit", heavy=True)
    texts: dict[str, Callable[[], bytes]] = {
        "half a million tensors": lambda: _many_tensors(500_000),
        "100,001 tensors": lambda: _many_tensors(100_001),
        "a header of 80 MB": lambda: b'{"w":{"dtype":"U8","shape":[' + b"1," * 40_000_000 + b"1]}}",
        "a header of empty lists": lambda: b'{"w":[' + b"[]," * 3_300_000 + b"1]}",
        "a header of brackets": lambda: b"[" * 9_000_000,
    }
    for fault, text in texts.items():
        yield Case(
            SAFETENSORS.name,
            fault,
            partial(_header, header=text),
            heavy=True,
        )


def _wide(length: int) -> bytes:
    """One letter of four bytes makes every letter of a text take four bytes."""
    content = "\U0001f600".encode() + b"x" * length
    return b"X" + struct.pack("<I", len(content)) + content


def _many_tensors(count: int) -> bytes:
    entry = '"{:x}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
    return f"{{{','.join(entry.format(number) for number in range(count))}}}".encode()


def _alike(bits: int, *, in_set: bool = False) -> bytes:
    """Tuples of -1 and -2, whose hashes are equal, as keys of a dictionary or items of a set."""
    keys = [
        b"(" + b"".join(struct.pack("<ci", b"J", -1 - (number >> bit & 1)) for bit in range(bits))
        for number in range(2**bits)
    ]
    if in_set:
        return ops(("__builtin__", "set"), b"](" + b"t".join(keys) + b"t" + b"e\x85R")[2:-1]
    return b"}(" + b"".join(key + b"tN" for key in keys) + b"u"


def _copies() -> bytes:
    once = ops(("_codecs", "encode"), b"q\x00", "x" * 2**20, "latin1", b"\x86q\x01R")
    return once[2:-1] + b"h\x00h\x01R" * 20_000


# Structures that lie


def _header(path: Path, header: object, data: bytes = bytes(16), length: int | None = None) -> None:
    header = header() if callable(header) else header
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    announced = len(text) if length is None else length
    path.write_bytes(struct.pack("<Q", announced) + text + data)


def _tensor(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | changes


def lying() -> Iterator[Case]:
    """Headers and archives that two readers could understand differently."""
    for length in (0, 1, 100, 10**6, 10**8 + 1, 2**40, 2**63, 2**64 - 1):
        yield Case(
            SAFETENSORS.name,
            f"a header of {length:,} bytes",
            partial(_header, header={"w": _tensor()}, length=length),
            "announces a safetensors header|damaged",
        )
    one = b'"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}'
    headers: dict[str, object] = {
        "an end past the file": {"w": _tensor(data_offsets=[0, 2**40])},
        "an offset past the file": {"w": _tensor(data_offsets=[2**40, 2**40 + 16])},
        "offsets in reverse": {"w": _tensor(data_offsets=[16, 0])},
        "negative offsets": {"w": _tensor(data_offsets=[-16, 0])},
        "a shape of 2^40": {"w": _tensor(shape=[2**40])},
        "a negative shape": {"w": _tensor(shape=[-4])},
        "a shape that overflows": {"w": _tensor(shape=[2**62, 4])},
        "a shape of text": {"w": _tensor(shape="4")},
        "an unknown type": {"w": _tensor(dtype="X")},
        "two tensors over one place": {"v": _tensor(), "w": _tensor()},
        "a gap": {"w": _tensor(shape=[1], data_offsets=[4, 8])},
        "bytes after the last tensor": {"w": _tensor(shape=[1], data_offsets=[0, 4])},
        "metadata that is no text": {"__metadata__": {"fst_lightning": 3}, "w": _tensor()},
        "a name twice": b"{" + one + b"," + one + b"}",
        "metadata twice": b'{"__metadata__":{},"__metadata__":{},' + one + b"}",
        "50,000 brackets": b"{" * 50_000,
        "text after the end": b"{}}",
        "a list": [],
        "nothing": b"{}",
        "an empty name": {"": _tensor()},
        "a name of 1,001 letters": {"x" * 1_001: _tensor()},
        "half a surrogate": b'{"\\ud800' + one[2:] + b"}",
        "bytes that are no UTF-8": b'{"\xff' + one[2:] + b"}",
        "an invalid card": {"__metadata__": {CARD_KEY: "{}"}, "w": _tensor()},
    }
    for dtype, size in (("F8_E4M3", 1), ("F8_E8M0", 1), ("F4", 1), ("F6_E2M3", 3), ("U64", 8)):
        shape = {"F4": [2], "F6_E2M3": [4]}.get(dtype, [1])
        headers[f"numbers of type {dtype}"] = (
            {"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}},
            size,
        )
    for fault, header in headers.items():
        header, size = header if isinstance(header, tuple) else (header, 16)
        yield Case(
            SAFETENSORS.name,
            fault,
            partial(_header, header=header, data=bytes(size)),
        )
    good = ("archive/data.pkl", tensor_pickle(4, 4, 1))
    evil = bare(GADGETS["os.mkdir"][0])
    data = ("archive/data/0", b"\0" * 16)
    for second in ("archive/data.pkl", "archive/DATA.pkl", "other/data.pkl", "data.pkl"):
        for entries in ([good, data, (second, evil)], [(second, evil), good, data]):
            where = "last" if entries[0] is good else "first"
            yield Case(
                ZIP.name,
                f"a second pickle {second}, {where}",
                partial(_zip, entries=entries),
                "ambiguous",
            )
    yield Case(
        ZIP.name,
        "a program in it",
        partial(_zip, entries=[good, data, ("archive/code/a.py", b"")]),
        "TorchScript",
    )
    yield Case(
        ZIP.name,
        "constants of a program in it",
        partial(_zip, entries=[good, data, ("archive/constants.pkl", b"")]),
        "TorchScript",
    )
    yield Case(
        ZIP.name,
        "packed, but no more than usual",
        partial(_zip, entries=[good, data], method=zipfile.ZIP_DEFLATED),
        "none of its names",
    )
    yield Case(
        ZIP.name,
        "packed by LZMA",
        partial(_zip, entries=[good, data], method=zipfile.ZIP_LZMA),
        "unusually packed",
    )
    changes: dict[str, Callable[[bytes], bytes]] = {
        "bytes after the end": lambda content: content + b"PK",
        "a comment": lambda content: content[:-2] + b"\x04\x00evil",
        "bytes before the start": lambda content: content[:4] + content,
        "a backslash in a name": lambda content: content.replace(
            b"archive/data.pkl", b"archive\\data.pkl"
        ),
        "a name that differs in the list": lambda content: content.replace(
            b"archive/data/0", b"archive/data/1", 1
        ),
        "an entry of 2 GB": lambda content: _resized(content, 16, 2**31),
        "entries longer than the file": lambda content: _resized(content, 2**31, 2**31),
        "an entry that is cut short": lambda content: _resized(content, 15, 15),
        "an encrypted entry": lambda content: _flagged(content),
    }
    gaps: dict[str, Callable[[bytes], bytes]] = {
        "bytes between two entries": lambda content: _with_gap(content, b"evil"),
        "an entry between two entries": lambda content: _with_gap(content, _first_entry(content)),
        "bytes between the entries and their list": lambda content: _with_gap(
            content, b"evil", b"PK\x01\x02"
        ),
        "bytes between the list and its end": lambda content: _with_gap(
            content, b"evil", b"PK\x05\x06"
        ),
    }
    for fault, change in (changes | gaps).items():

        def write(path: Path, change: Callable[[bytes], bytes] = change) -> None:
            _zip(path, [good, data])
            path.write_bytes(change(path.read_bytes()))

        yield Case(ZIP.name, fault, write, "altered: bytes lie" if fault in gaps else "")
    persistent = {
        "a persistent text": ops("storage", b"Q"),
        "a persistent pair": ops(b"(", "storage", ("torch", "FloatStorage"), b"tQ"),
        "a persistent module": ops(
            b"(", "module", ("torch", "FloatStorage"), "file", "source", b"tQ"
        ),
        "a persistent id of text": b"\x80\x02Pposix.mkdir\n.",
        "storages that disagree": tensor_pickle(4, 4, 1)[:-2]
        + tensor_pickle(2, 2, 1)[3:].replace(b"w0", b"w1"),
    }
    for fault, body in persistent.items():
        yield Case(
            ZIP.name,
            fault,
            partial(torch_zip, data=body, tensors={"0": bytes(16)}),
        )


def _resized(content: bytes, packed: int, size: int) -> bytes:
    altered = bytearray(content)
    entry = altered.index(b"PK\x01\x02", altered.index(b"PK\x01\x02") + 1)  # the tensor's data
    struct.pack_into("<2L", altered, entry + 20, packed, size)
    return bytes(altered)


def _with_gap(content: bytes, gap: bytes, before: bytes = b"PK\x03\x04") -> bytes:
    """Put bytes before the second entry, or before the first such mark; all offsets still fit."""
    place = content.index(before, 1)
    altered = bytearray(content[:place] + gap + content[place:])
    end = altered.index(b"PK\x05\x06")
    entry = altered.index(b"PK\x01\x02")
    if before != b"PK\x05\x06":
        struct.pack_into("<L", altered, end + 16, entry)
    while before == b"PK\x03\x04" and (entry := altered.find(b"PK\x01\x02", entry + 1)) >= 0:
        (offset,) = struct.unpack_from("<L", altered, entry + 42)
        struct.pack_into("<L", altered, entry + 42, offset + len(gap))
    return bytes(altered)


def _first_entry(content: bytes) -> bytes:
    return content[: content.index(b"PK\x03\x04", 1)]


def _flagged(content: bytes) -> bytes:
    altered = bytearray(content)
    altered[altered.index(b"PK\x01\x02") + 8] |= 1
    return bytes(altered)


# Weights that do not fit


def unfit() -> Iterator[Case]:
    """Readable files that are of no use: for every format alike."""
    finite = torch.tensor([0.1, 0.2, 0.3])
    changes: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
        "NaN": (lambda s: s | {"fc.bias": finite * float("nan")}, "NaN or infinite"),
        "infinity": (lambda s: s | {"fc.bias": finite / 0}, "NaN or infinite"),
        "too large for float32": (
            lambda s: s | {"fc.bias": finite.double() * 1e300},
            "NaN or infinite",
        ),
        "complex numbers": (lambda s: s | {"fc.bias": finite.to(torch.complex64)}, "complex64"),
        "integers": (lambda s: s | {"fc.weight": s["fc.weight"].to(torch.int8)}, "int8"),
        "booleans": (lambda s: s | {"fc.bias": finite > 0}, "bool"),
        "43 classes": (lambda s: dict(make_net(43).state_dict()), "file has 43 classes, the data"),
        "another network": (
            lambda s: dict(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3)).state_dict()),
            "none of its names",
        ),
        "another width": (
            lambda s: s | {"conv1.weight": torch.zeros(4, 3, 3, 3)},
            r"`conv1\.weight` has shape",
        ),
        "a layer too few": (
            lambda s: {k: v for k, v in s.items() if "layer1" not in k},
            "lacks 10 tensors",
        ),
        "a layer too many": (lambda s: s | {"fc2.bias": finite}, r"`fc2\.bias`"),
        "one layer under two names": (
            lambda s: s | {"linear.weight": s["fc.weight"].clone()},
            "both mean",
        ),
        "two networks": (
            lambda s: {f"{p}.{k}": v.clone() for p in ("model", "net") for k, v in s.items()},
            "equally well|lacks",
        ),
        "a scalar for a matrix": (lambda s: s | {"fc.weight": torch.tensor(1.0)}, "has shape"),
        "an escape sequence in a name": (
            lambda s: s | {"\x1b[2J\x1b]0;title\x07.bias": finite},
            r"\\x1b\[2J",
        ),
        "a name of 900 letters": (lambda s: s | {"x" * 900: finite}, r"x\.\.\.`"),
        "no tensor": (lambda s: {}, ""),
        "an empty tensor": (lambda s: s | {"fc.bias": torch.zeros(0)}, "has shape|classes"),
    }
    for kind, (fault, (change, says)) in itertools.product(FILES, changes.items()):

        def write(
            path: Path,
            kind: Kind = kind,
            change: Callable[[dict[str, Tensor]], dict[str, Tensor]] = change,
        ) -> None:
            _save(kind, path, change(dict(make_net().state_dict())))

        yield Case(kind.name, fault, write, says)
    for fault, value in {
        "a number": 3,
        "a list": [],
        "a text": "text",
        "one tensor": torch.zeros(3),
        "a dictionary without tensors": {"a": 1},
        "a sparse tensor": {"w": torch.zeros(1), "s": torch.eye(2).to_sparse()},
        "a tensor without data": {"w": torch.zeros(1), "s": torch.empty(2**40, device="meta")},
        "numbers as names": {1: torch.zeros(1)},
    }.items():
        yield Case(ZIP.name, fault, partial(save_with, value=value))
    odd: dict[str, dict[str, object]] = {
        "a name that is no text": {"model_name": 3},
        "a name that controls the terminal": {"model_name": "\x1b[2J"},
        "one class": {"num_classes": 1},
        "classes in words": {"num_classes": "many"},
        "a million classes": {"num_classes": 10**6},
        "images of no size": {"img_size": (0, 1)},
        "images of half a pixel": {"img_size": (1.5,)},
    }
    for fault, facts in odd.items():
        yield Case(BENCH.name, fault, partial(save_with, value=bench(**facts)))
    beside: dict[str, object] = {
        "objects in NumPy": np.array([{}, "x"], dtype=object),
        "texts in NumPy": np.array(["x"]),
        "dates in NumPy": np.datetime64(1, "s"),
        "records in NumPy": np.zeros(1, dtype=[("a", "i4")]),
    }
    for fault, value in beside.items():
        yield Case(BENCH.name, fault, partial(save_with, value=bench(bd_test=value)), None)
    yield Case(
        ZIP.name,
        "a NumPy array among the weights",
        lambda path: save_with(path, state(x=np.zeros(3))),
        "asks Python for `numpy",
    )
    for fault, card in {
        "a card that is no text": 3,
        "a card that is no JSON": "{",
        "a card of brackets": "[" * 100_000,
        "a card with a class to call": make_card().to_json()[:-1] + ', "_target_": "os.system"}',
        "a card that says things twice": make_card().to_json()[:-1] + ', "head": "x"}',
        "a card of a later version": make_card().to_json().replace(": 1,", ": 2,", 1),
        "a card of a million classes": make_card().to_json().replace(": 3,", ": 1000000,", 1),
        "a card with NaN": make_card().to_json().replace("0.125", "NaN"),
        "a card that controls the terminal": make_card().to_json().replace("cat", "\\u001b[2J"),
    }.items():
        yield Case(
            LIGHTNING.name,
            fault,
            partial(save_with, value=lightning(**{CARD_KEY: card})),
            "card|entry",
        )


def _save(kind: Kind, path: Path, tensors: Mapping[str, Tensor]) -> None:
    if kind is SAFETENSORS and tensors:
        write_state(path, tensors)
    elif kind is SAFETENSORS:
        _header(path, {}, b"")
    elif kind is LIGHTNING:
        save_with(path, lightning(state_dict=dict(tensors)))
    elif kind is BENCH:
        save_with(path, bench(model=dict(tensors)))
    else:
        save_with(path, dict(tensors), legacy=kind is LEGACY)


def folders() -> Iterator[Case]:
    """Folders of the Hub whose text lies, or whose weights would run code."""
    configs: dict[str, tuple[object, str | None]] = {
        "a config of brackets": ("[" * 100_000, "no JSON object"),
        "a config of 2 MB": (" " * 2_000_000, "limit"),
        "a config that is a list": ([], "no JSON object"),
        "a name that controls the terminal": (hub_config(architecture="\x1b[2J"), "printable"),
        "a billion classes": (hub_config(num_classes=10**9), "num_classes"),
        "a number of 5,000 digits": (
            '{"architecture": "a", "num_classes": ' + "9" * 5_000 + "}",
            "",
        ),
        "labels that are no text": (hub_config(label_names=[1, {}, []]), "classes"),
        "sizes that are no numbers": (hub_config(pretrained_cfg={"mean": "x"}), "mean"),
        # they are never used
        "a class to call": (hub_config(_target_="os.system", auto_map={"A": "x.Y"}), None),
    }
    for fault, (config, says) in configs.items():
        yield Case(HUB.name, fault, partial(hub, config=config), says)
    evil: dict[str, Callable[[Path], object]] = {
        "a call in its weights": lambda path: planted(
            path, state(evil=_PLACE), GADGETS["os.system"][0], legacy=False
        ),
        "a whole model": lambda path: save_with(path, make_net()),
    }
    for fault, weights in evil.items():
        write = partial(hub, config=hub_config(), weights=weights)
        yield Case(HUB.name, fault, write, "could run code|whole pickled")
    yield Case(HUB.name, "no weights", Path.mkdir, "a folder that holds")


def cases() -> Iterator[Case]:
    """The whole corpus of checkpoints."""
    yield from running()
    yield from filling()
    yield from lying()
    yield from unfit()
    yield from folders()
    for kind in KINDS:
        yield Case(kind.name, "nothing wrong", kind.write, None)
        yield from damaged(kind, "config.json" if kind is HUB else None)
