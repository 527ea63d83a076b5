"""Calls and states in a pickle, at and just beyond what is described."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from fst_lightning.checkpoints.errors import Refusal
from fst_lightning.checkpoints.formats import pickle_scan
from fst_lightning.checkpoints.formats.pickle_rules import (
    build,
    call,
    is_known,
    is_module,
    is_plain,
    is_risky,
    numbers,
    simple_key,
    weight,
)
from fst_lightning.checkpoints.formats.pickle_scan import scan_pickle
from fst_lightning.checkpoints.formats.pickle_values import (
    Foreign,
    Named,
    NumpyNumber,
    NumpyType,
    Pairs,
    StorageRef,
    TensorRef,
)
from tests.checkpoints.samples import ops

TENSOR = Named("torch._utils._rebuild_tensor_v2")


def storage(numel: int) -> StorageRef:
    return StorageRef("0", torch.float32, numel)


def tensor(numel: int, offset: Any, shape: Any, stride: Any) -> object:
    return call(TENSOR, (storage(numel), offset, shape, stride, False, Pairs()))


def fits(numel: int, offset: Any, shape: Any, stride: Any) -> bool:
    try:
        tensor(numel, offset, shape, stride)
    except Refusal:
        return False
    return True


def test_a_tensor_stays_inside_its_storage() -> None:
    """Independent check: the places of all elements, one by one."""
    sizes, steps = range(4), (0, 1, 3)
    for numel, offset in itertools.product((0, 1, 5, 7), (0, 1, 2)):
        for rows, columns in itertools.product(sizes, sizes):
            for down, right in itertools.product(steps, steps):
                places = [
                    offset + row * down + column * right
                    for row in range(rows)
                    for column in range(columns)
                ]
                inside = all(place < numel for place in places)
                assert fits(numel, offset, (rows, columns), (down, right)) == inside
    assert tensor(6, 0, (2, 3), (3, 1)) == TensorRef(storage(6), 0, (2, 3), (3, 1))
    assert fits(1, 0, (), ())
    assert not fits(0, 0, (), ())


def test_sizes_of_tensors() -> None:
    large = 2**48
    assert fits(large, 0, (large - 1,), (1,))
    assert not fits(2 * large, 0, (large,), (1,))
    assert not fits(large, 0, (2**24, 2**24), (0, 0))
    assert fits(large, 0, (2**24, 2**24 - 1), (0, 0))
    assert fits(1, 0, (1,) * 64, (1,) * 64)
    for offset, shape, stride in (
        (0, (1,) * 65, (1,) * 65),
        (-1, (1,), (1,)),
        (0, (-1,), (1,)),
        (0, (1,), (-1,)),
        (0, (1,), ()),
        (0, (True,), (1,)),
        (0, (1.0,), (1,)),
        (True, (1,), (1,)),
        (0, [1], (1,)),
        (large, (0,), (1,)),
    ):
        assert not fits(4, offset, shape, stride), (offset, shape, stride)
    with pytest.raises(Refusal):
        call(TENSOR, (storage(4), 0, (1,), (1,), False, Pairs([("hook", 1)])))
    with pytest.raises(Refusal):
        call(TENSOR, (storage(4), 0, (1,), (1,), 0, Pairs()))
    short = call(Named("torch._utils._rebuild_tensor"), (storage(4), 1, (3,), (1,)))
    assert short == TensorRef(storage(4), 1, (3,), (1,))


def test_keys_of_dictionaries() -> None:
    for key in (None, True, 1.5, "a", b"a", 2**63 - 1, 1 - 2**63):
        assert simple_key(key)
    odd: object
    for odd in (2**63, -(2**63), (), (1,), 1j, [], Pairs(), Named("a.b")):
        assert not simple_key(odd)
    assert numbers(["a", b"a", 1, 1.5, None, True]) == 4


def test_what_a_call_copies() -> None:
    assert weight(("abc", b"de", [1, 2], Pairs([(1, 2)] * 3), 7)) == 3 + 2 + 200 + 300
    assert weight("abc") == weight([("abc",)]) == 0


def test_names() -> None:
    for name in ("os.system", "builtins.eval", "torch.load", "os", "a b.c", "a.", "", "numpy.load"):
        assert is_risky(name), name
    for name in (
        "builtins.dict",
        "functools.partial",
        "osx.system",
        "numpy.loads",
        "a.os",
        "a-b.c",
    ):
        assert not is_risky(name), name
    assert is_risky("builtins.dict.x") and is_risky("torch.hub.load")  # noqa: PT018
    assert is_module("torch.nn.Linear")
    assert not is_module("torch.nnx")
    assert is_plain("torch.float32")
    assert is_plain("torch.FloatStorage")
    assert is_plain("collections.OrderedDict")
    assert not is_plain("numpy.dtype")
    assert is_known("numpy.dtype")
    assert not is_known("numpy.load")


def refused(name: str, *arguments: object) -> bool:
    try:
        call(Named(name), arguments)
    except Refusal:
        return True
    return False


def test_calls() -> None:
    assert call(Named("_codecs.encode"), ("\xff", "latin1")) == b"\xff"
    assert call(Named("_codecs.encode"), ("", "latin1")) == b""
    assert refused("_codecs.encode", "\u0100", "latin1")
    assert refused("_codecs.encode", "a", "utf8")
    assert refused("collections.OrderedDict", 1)
    assert refused("collections.Counter")
    assert not refused("builtins.set", [1, "a"])
    assert refused("builtins.set", [(1,)])
    assert refused("builtins.set", (1,))
    assert not refused("torch.Size", [1, 2])
    assert refused("torch.Size", [-1])
    assert not refused("torch.device", "cuda")
    assert not refused("torch.device", "cuda", 1)
    assert refused("torch.device", 1)
    assert refused("os.system", "id")
    parameter = "torch._utils._rebuild_parameter"
    made = TensorRef(storage(1), 0, (), ())
    assert call(Named(parameter), (made, True, Pairs())) is made
    assert refused(parameter, made, True, Pairs([(1, 2)]))
    assert refused(parameter, storage(1), True, Pairs())
    for function, arguments in (("os.system", ()), (Named("torch.Size"), [[1]]), (None, ())):
        with pytest.raises(Refusal):
            call(function, arguments)


def test_numpy_types_and_numbers() -> None:
    made = call(Named("numpy.dtype"), ("<i8", False, True))
    assert isinstance(made, NumpyType)
    assert (made.code, made.itemsize, made.complete) == ("i8", 8, False)
    for arguments in (("i8", True, True), ("i8", False, False), ("O8", False, True), ("i3",)):
        assert refused("numpy.dtype", *arguments)
    scalar = "numpy._core.multiarray.scalar"
    assert refused(scalar, made, bytes(8))  # its byte order is not set yet
    build(made, (3, ">", None, None, None, -1, -1, 0))
    assert (made.complete, made.order) == (True, ">")
    number = call(Named(scalar), (made, b"\0" * 7 + b"\3"))
    assert isinstance(number, NumpyNumber)
    assert number.whole() == 3
    assert refused(scalar, made, bytes(7))
    with pytest.raises(Refusal):
        build(made, (3, "<", None, None, None, -1, -1, 0))
    for state in ((3, "?", None, None, None, -1, -1, 0), (3, "<", 1, None, None, -1, -1, 0), ()):
        with pytest.raises(Refusal):
            build(NumpyType("i8"), state)


def test_states() -> None:
    build(Pairs(ordered=True), Pairs([("_metadata", Pairs())]))
    for target, state in (
        (Pairs(), Pairs([("_metadata", Pairs())])),
        (Pairs(ordered=True), Pairs([("_metadata", 1)])),
        (Pairs(ordered=True), Pairs([("x", Pairs())])),
        (Pairs(ordered=True), Pairs([("_metadata", Pairs()), ("x", 1)])),
        (storage(1), Pairs()),
    ):
        with pytest.raises(Refusal):
            build(target, state)


def reference(
    numel: int, kind: str = "FloatStorage", key: str = "0"
) -> tuple[bytes | str | Any, ...]:
    return (b"(", "storage", ("torch", kind), key, "cpu", numel, b"tQ")


def test_references_to_storages() -> None:
    found = scan_pickle(ops(*reference(3))).storages
    assert found == {"0": StorageRef("0", torch.float32, 3)}
    assert scan_pickle(ops(*reference(2**48 - 1))).unusual is None
    assert scan_pickle(ops(*reference(2**48))).unusual is not None
    assert scan_pickle(ops(*reference(-1))).unusual is not None
    twice = ops(b"(", *reference(3), *reference(3), b"t")
    assert len(scan_pickle(twice).storages) == 1
    for other in (reference(4), reference(3, "IntStorage")):
        with pytest.raises(Refusal, match="two types to the same data"):
            scan_pickle(ops(b"(", *reference(3), *other, b"t"))


def test_what_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each bound lets through as many as it says, and not one more."""
    made = (("torch._utils", "_rebuild_tensor"), b"(", *reference(1), 0, b"))", b"tR")
    monkeypatch.setattr(pickle_scan, "_TENSOR_LIMIT", 3)
    scan_pickle(ops(b"(", *made * 3, b"t"))
    with pytest.raises(Refusal, match="more than 3 tensors"):
        scan_pickle(ops(b"(", *made * 4, b"t"))
    monkeypatch.setattr(pickle_scan, "_CONTAINER_LIMIT", 4)
    scan_pickle(ops(b"(" + b"]" * 2 + b"t"))
    with pytest.raises(Refusal, match="more than 4 lists"):
        scan_pickle(ops(b"(" + b"]" * 3 + b"t"))
    monkeypatch.setattr(pickle_scan, "_INSTRUCTION_LIMIT", 4)
    scan_pickle(ops(b"N", b"0", b"N")[2:])
    with pytest.raises(Refusal, match="more than 4 pickle instructions"):
        scan_pickle(ops(b"N", b"0", b"N"))


def test_copies_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    encode = (("_codecs", "encode"), "abc", "latin1", b"\x86R")
    each = len("abc") + len("latin1")
    monkeypatch.setattr(pickle_scan, "_COPY_LIMIT", 2 * each)
    scan_pickle(ops(b"(", *encode * 2, b"t"))
    with pytest.raises(Refusal, match="copies the same values"):
        scan_pickle(ops(b"(", *encode * 3, b"t"))


def test_a_whole_model_is_called_one() -> None:
    """What stands for it says so wherever it lies, and also what only has its state."""
    scan = scan_pickle(ops(("nets", "Net"), b")\x81}", "_parameters", 1, b"sb"))
    assert isinstance(scan.root, Foreign)
    assert "whole pickled model" in scan.root.why.found
    plain = scan_pickle(ops(("nets", "Net"), b")\x81}", "other", 1, b"sb"))
    assert isinstance(plain.root, Foreign)
    assert "neither a tensor nor plain data" in plain.root.why.found


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02]]a",  # no end
        b"\x80\x02.",
        b"\x80\x02\x85.",
        b"\x80\x02K\x01\x86.",
        b"\x80\x02K\x01K\x02a.",
        b"\x80\x02}K\x01s.",
        b"\x80\x02}(K\x01u.",
        b"\x80\x02h\x00.",
        b"\x80\x02t.",
        b"\x80\x02K\x01Q.",
        b"\x80\x03N.",
        b"\x80\x02U\x01\xff.",
        b"\x80\x02\x8f.",
    ],
    ids=repr,
)
def test_broken_structures(data: bytes) -> None:
    with pytest.raises(Refusal):
        scan_pickle(data)


def test_long_numbers() -> None:
    assert scan_pickle(ops(2**96 - 1)).unusual is None
    for number in (2**96, -(2**96)):
        assert scan_pickle(ops(number)).unusual is not None
