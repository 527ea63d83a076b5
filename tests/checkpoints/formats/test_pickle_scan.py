"""What the scan says of pickles, by instruction; tests/hostile has whole files."""

from __future__ import annotations

import io
import os
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fst_lightning.checkpoints import CheckpointError, read_checkpoint
from fst_lightning.checkpoints.errors import Refusal
from fst_lightning.checkpoints.formats.pickle_scan import scan_pickle
from fst_lightning.checkpoints.formats.pickle_values import Foreign, NumpyNumber
from tests.checkpoints.samples import ops, pickled, torch_zip


def refused(path: Path, match: str) -> str:
    with pytest.raises(CheckpointError, match=match) as error:
        read_checkpoint(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert len(text) < 1_000
    return text


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


def test_a_dangerous_name_behind_many_others(tmp_path: Path) -> None:
    data = ops(*((f"a{number}", "b") for number in range(2_000)), ("posix", "system"))
    assert "`posix.system`" in refused(torch_zip(tmp_path / "a.pt", data), "run code")


def test_names_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fst_lightning.checkpoints.formats.pickle_scan._NAME_LIMIT", 100)
    assert scan_pickle(ops(b"(", *[("a", "b")] * 100, b"t")).foreign is not None
    for name in (("a", "b"), ("torch", "float32")):
        data = ops(b"(", *[name] * 101, b"t")
        refused(torch_zip(tmp_path / "a.pt", data), "more than 100 functions")


def test_names_cannot_control_the_terminal(tmp_path: Path) -> None:
    data = ops(b"cos\x1b[2J\x07\nsystem\n")
    text = refused(torch_zip(tmp_path / "a.pt", data), "asks Python for")
    assert text.isprintable()


def test_allowed_names_with_other_arguments(tmp_path: Path) -> None:
    """Each of these is a call that torch's own restricted unpickler would make.

    A value that is made in this way may stand beside the weights, where nothing builds it.
    """
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
        ops(b"}((", 1, b"t", 1, b"t", 1, b"s"),  # a tuple as a key, of a tuple and of a number
        ops(b"}(", 1, b"t", 1, b"s"),
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
    """Whether the scan calls a pickle plain, so that `torch.load` may have it."""
    try:
        scan = scan_pickle(data)
    except Refusal:
        return False
    return scan.foreign is None and scan.unusual is None


def test_numpy_is_described_and_never_plain() -> None:
    values = (
        *(np.arange(3), np.array([os], dtype=object)[:0], np.array(["text"])),
        *(np.datetime64(1, "s"), np.zeros(1, dtype=[("a", "i4")]), np.float64(1)),
    )
    for value in values:
        assert isinstance(scan_pickle(pickled(value)).root, Foreign | NumpyNumber)
        assert not scan_fails_open(pickled(value))


@given(st.sampled_from("bhilqBHILQ"), st.integers(-(2**70), 2**70), st.booleans())
def test_numpy_integers_have_their_value(code: str, number: int, big: bool) -> None:
    """Independent check: NumPy's own conversion."""
    kind = np.dtype(code).newbyteorder(">" if big else "<")
    info = np.iinfo(kind)
    value = np.array([max(info.min, min(info.max, number))], kind)[0]
    described = scan_pickle(pickled(value)).root
    assert isinstance(described, NumpyNumber)
    assert described.whole() == int(value)


def test_an_unusual_numpy_number_is_no_number() -> None:
    good = pickled(np.int64(3))
    assert isinstance(scan_pickle(good).root, NumpyNumber)
    for new in (b"i2", b"O8", b"V8"):
        assert isinstance(scan_pickle(good.replace(b"i8", new, 1)).root, Foreign)
    floating = scan_pickle(pickled(np.float32(0.5))).root
    assert isinstance(floating, NumpyNumber)
    assert floating.whole() is None


def test_numbers_as_keys_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """In dictionaries, in sets, and in copies of both; text is not counted."""
    monkeypatch.setattr("fst_lightning.checkpoints.formats.pickle_scan._NUMBER_KEY_LIMIT", 5)
    five, six = dict.fromkeys(range(5)), dict.fromkeys(range(6))
    assert not scan_fails_open(pickled(six))
    assert not scan_fails_open(pickled([five, {0.5: None}]))
    assert not scan_fails_open(pickled(set(six)))
    assert not scan_fails_open(pickled(Counter({1: 1, 2: 2, 3: 3})))  # counted, and copied
    for value in (five, set(five), Counter({1: 1, 2: 2}), dict.fromkeys("abcdefg")):
        assert scan_fails_open(pickled(value))


def test_complex_numbers_are_no_keys() -> None:
    """They collide as tuples do: any real part has an imaginary one of the same hash."""
    for value in (np.complex128(1), np.float64(0.5), np.bool_(1), np.int32(1)):
        assert not scan_fails_open(pickled({value: 2}))


def test_a_pickle_with_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fst_lightning.checkpoints.formats.pickle_scan._INSTRUCTION_LIMIT", 1_000)
    refused(torch_zip(tmp_path / "a.pt", ops(b"(" + b"]" * 2_000 + b"t")), "more than 1,000")
    monkeypatch.setattr("fst_lightning.checkpoints.formats.archive.PICKLE_LIMIT", 100)
    refused(torch_zip(tmp_path / "a.pt", ops(b"(" + b"]" * 200 + b"t")), "holds a pickle of")


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
