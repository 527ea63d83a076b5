"""Which names and calls a checkpoint's pickle may contain, each with exactly checked arguments."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable

import torch

from fst_lightning.checkpoints.errors import Refusal
from fst_lightning.checkpoints.pickle_values import (
    Inert,
    Named,
    NumpyType,
    Pairs,
    StorageRef,
    TensorRef,
)

__all__ = [
    "STORAGE_ITEMSIZE",
    "build",
    "call",
    "is_allowed",
    "is_module",
    "is_numpy",
    "is_risky",
    "numbers",
    "simple_key",
    "weight",
]

STORAGE_ITEMSIZE = {
    "torch.BFloat16Storage": 2,
    "torch.BoolStorage": 1,
    "torch.ByteStorage": 1,
    "torch.CharStorage": 1,
    "torch.ComplexDoubleStorage": 16,
    "torch.ComplexFloatStorage": 8,
    "torch.DoubleStorage": 8,
    "torch.FloatStorage": 4,
    "torch.HalfStorage": 2,
    "torch.IntStorage": 4,
    "torch.LongStorage": 8,
    "torch.ShortStorage": 2,
}
"""Bytes of one element, for each storage class that `torch.save` writes for ordinary tensors."""

_DTYPES = {str(value) for value in vars(torch).values() if isinstance(value, torch.dtype)}
_NUMPY_TYPE = re.compile(r"[<>=|]?(?:b1|[iu][1248]|f[248]|c(?:8|16))")
_MOST_DIMENSIONS = 64
_LARGEST = 2**48

_RISKY = {
    "asyncio",
    "bdb",
    "builtins",
    "cProfile",
    "code",
    "codeop",
    "commands",
    "ctypes",
    "cloudpickle",
    "dill",
    "functools",
    "http",
    "importlib",
    "io",
    "joblib",
    "marshal",
    "multiprocessing",
    "nt",
    "operator",
    "os",
    "pdb",
    "pickle",
    "pip",
    "platform",
    "posix",
    "pty",
    "pydoc",
    "requests",
    "runpy",
    "shutil",
    "signal",
    "site",
    "socket",
    "ssl",
    "subprocess",
    "sys",
    "tempfile",
    "threading",
    "timeit",
    "trace",
    "types",
    "urllib",
    "webbrowser",
    "_io",
    "_operator",
    "_pickle",
    "_posixsubprocess",
    "_thread",
}
_MODULES = ("torch.nn.", "torchvision.models.", "torchvision.ops.", "timm.", "torch.fx.")


def is_risky(name: str) -> bool:
    """Whether `name` belongs to a library that can run programs or touch files."""
    return name.split(".")[0] in _RISKY


def is_module(name: str) -> bool:
    """Whether `name` is part of a network's code."""
    return name.startswith(_MODULES)


def is_numpy(name: str) -> bool:
    """Whether `name` is one that NumPy's numbers and arrays need."""
    return name in _NUMPY_CALLS or name == "numpy.ndarray"


def is_allowed(name: str) -> bool:
    """Whether a checkpoint may name `name` at all."""
    return name in _CALLS or name in STORAGE_ITEMSIZE or name in _DTYPES or is_numpy(name)


def simple_key(value: object) -> bool:
    """Whether `value` may be a dictionary's key or a set's item.

    Tuples and complex numbers may not: a file can hold millions of them that hash alike.
    """
    if type(value) is int:
        return abs(value) < 2**63
    if isinstance(value, Inert):
        return value.kind == "numpy integer"
    return value is None or type(value) in (bool, float, str, bytes)


def numbers(keys: Iterable[object]) -> int:
    """Count the keys whose hash a file can choose; that of text differs in every process."""
    return sum(type(key) not in (str, bytes) for key in keys)


def call(function: object, arguments: object) -> object:
    """Return what a harmless call would make.

    Raises:
        Refusal: the call is none that a checkpoint needs.
    """
    if isinstance(function, Named) and type(arguments) is tuple:
        rule = _CALLS.get(function.name) or _NUMPY_CALLS.get(function.name)
        if rule is not None:
            result = rule(arguments)
            if result is not None:
                return result
            raise _unusual(f"calls `{function.name}` with arguments that no ordinary file has")
    raise _unusual("calls something that is no function of a checkpoint")


def weight(values: object) -> int:
    """Return about how many bytes a call copies from `values`, its arguments or its state."""
    total = 0
    for value in values if type(values) is tuple else ():
        if isinstance(value, str | bytes):
            total += len(value)
        elif isinstance(value, Pairs):
            total += 100 * len(value.items)
        elif isinstance(value, list):
            total += 100 * len(value)
    return total


def build(target: object, state: object) -> None:
    """Apply a state to a value, where that is harmless.

    Raises:
        Refusal: the pair is none that a checkpoint needs.
    """
    match target, state:
        case Pairs(ordered=True), Pairs(items=[("_metadata", Pairs())]):
            return
        case NumpyType(complete=False), (int(), str(order), None, None, None, -1, -1, 0) if (
            order in ("<", ">", "=", "|")
        ):
            target.complete = True
            return
        case Inert(kind="numpy array", complete=False), (
            1,
            tuple(shape),
            NumpyType(complete=True, itemsize=itemsize),
            bool(),
            bytes(data),
        ) if _are_sizes(shape) and math.prod(shape) * itemsize == len(data):
            target.complete = True
            return
    raise _unusual("sets the state of a value that needs none")


def _unusual(found: str) -> Refusal:
    return Refusal(
        f"is damaged or made to harm: it {found}",
        "Ask for a file that torch.save(model.state_dict(), ...) wrote",
    )


def _are_sizes(values: object) -> bool:
    return (
        type(values) is tuple
        and len(values) <= _MOST_DIMENSIONS
        and all(type(value) is int and 0 <= value < _LARGEST for value in values)
    )


def _ordered(arguments: tuple[object, ...]) -> object:
    return Pairs(ordered=True) if arguments == () else None


def _counter(arguments: tuple[object, ...]) -> object:
    match arguments:
        case (Pairs(items=items),):
            return Pairs(list(items))
    return None


def _tensor(arguments: tuple[object, ...]) -> object:
    match arguments:
        case (StorageRef() as storage, int(offset), tuple(shape), tuple(stride)):
            pass
        case (
            StorageRef() as storage,
            int(offset),
            tuple(shape),
            tuple(stride),
            bool(),
            Pairs(items=[]),
        ):
            pass
        case _:
            return None
    if not (_are_sizes((offset,)) and _are_sizes(shape) and _are_sizes(stride)):
        return None
    if len(shape) != len(stride) or math.prod(shape) >= _LARGEST:
        return None
    reach = sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) + 1
    if offset + (reach if 0 not in shape else 0) > storage.numel:
        return None
    return TensorRef(storage, shape)


def _parameter(arguments: tuple[object, ...]) -> object:
    match arguments:
        case (TensorRef() as tensor, bool(), Pairs(items=[])):
            return tensor
    return None


def _size(arguments: tuple[object, ...]) -> object:
    match arguments:
        case ((*values,),) if _are_sizes(tuple(values)):
            return Inert("size")
    return None


def _device(arguments: tuple[object, ...]) -> object:
    match arguments:
        case (str(),) | (str(), int()):
            return Inert("device")
    return None


def _set(arguments: tuple[object, ...]) -> object:
    match arguments:
        case (list(values),) if all(simple_key(value) for value in values):
            return Inert("set")
    return None


def _encode(arguments: tuple[object, ...]) -> object:
    match arguments:
        # another codec's name would be imported, and some of them unpack
        case (str(text), "latin1") if text.isascii() or max(text) <= "\xff":
            return text.encode("latin1")
    return None


def _numpy_type(arguments: tuple[object, ...]) -> object:
    match arguments:
        case (str(code), False, True) if _NUMPY_TYPE.fullmatch(code):
            kind, size = code.lstrip("<>=|")[0], code.lstrip("<>=|")[1:]
            return NumpyType(int(size), integer=kind in "iu")
    return None


def _numpy_array(arguments: tuple[object, ...]) -> object:
    match arguments:
        # the shape is asked of NumPy at once, whatever bytes follow: only NumPy's own (0,) passes
        case (Named(name="numpy.ndarray"), (0,), b"b"):
            return Inert("numpy array", complete=False)
    return None


def _numpy_number(arguments: tuple[object, ...]) -> object:
    match arguments:
        case (NumpyType(complete=True) as kind, bytes(data)) if len(data) == kind.itemsize:
            return Inert("numpy integer" if kind.integer else "numpy number")
    return None


_Rule = Callable[[tuple[object, ...]], object]

_CALLS: dict[str, _Rule] = {
    "_codecs.encode": _encode,
    "builtins.set": _set,
    "collections.Counter": _counter,
    "collections.OrderedDict": _ordered,
    "torch.Size": _size,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch.device": _device,
}
_NUMPY_CALLS: dict[str, _Rule] = {
    "numpy.dtype": _numpy_type,
    "numpy._core.multiarray._reconstruct": _numpy_array,
    "numpy._core.multiarray.scalar": _numpy_number,
    "numpy.core.multiarray._reconstruct": _numpy_array,
    "numpy.core.multiarray.scalar": _numpy_number,
}
