"""Which names and calls a checkpoint's pickle may contain, each with exactly checked arguments."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable

import torch

from fst_lightning.checkpoints.errors import Refusal
from fst_lightning.checkpoints.formats.pickle_values import (
    Inert,
    Named,
    NumpyNumber,
    NumpyType,
    Pairs,
    StorageRef,
    TensorRef,
)

__all__ = [
    "STORAGE_DTYPE",
    "build",
    "call",
    "is_known",
    "is_module",
    "is_plain",
    "is_risky",
    "numbers",
    "simple_key",
    "weight",
]

STORAGE_DTYPE = {
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.BoolStorage": torch.bool,
    "torch.ByteStorage": torch.uint8,
    "torch.CharStorage": torch.int8,
    "torch.ComplexDoubleStorage": torch.complex128,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.IntStorage": torch.int32,
    "torch.LongStorage": torch.int64,
    "torch.ShortStorage": torch.int16,
}
"""The elements of each storage class that `torch.save` writes for ordinary tensors."""

_DTYPES = {str(value) for value in vars(torch).values() if isinstance(value, torch.dtype)}
_NUMPY_TYPE = re.compile(r"[<>=|]?(?:b1|[iu][1248]|f[248]|c(?:8|16))")
_NAME = re.compile(r"[\w-]+(?:\.[\w-]+)+")
_MOST_DIMENSIONS = 64
_LARGEST = 2**48

# Parts of a name, from its start: a whole library, or one function of it.
_RISKY = {
    *("asyncio", "atexit", "bdb", "builtins", "cProfile", "cloudpickle", "codecs", "codeop"),
    *("code.InteractiveConsole", "code.InteractiveInterpreter", "code.interact"),
    *("commands", "concurrent", "ctypes", "dbm", "dill", "distutils"),
    *("doctest", "ensurepip", "fileinput", "fsspec", "ftplib", "functools", "glob", "http"),
    *("importlib", "inspect", "io", "joblib", "linecache", "logging", "marshal", "mmap"),
    *("multiprocessing", "nt", "operator", "os", "paramiko", "pdb", "pickle", "pip", "pkgutil"),
    *("platform", "posix", "pty", "pydoc", "requests", "runpy", "setuptools", "shelve", "shutil"),
    *("signal", "site", "smtplib", "socket", "sqlite3", "ssl", "subprocess", "sys", "tarfile"),
    *("tempfile", "threading", "timeit", "trace", "types", "urllib", "venv", "webbrowser"),
    *("winreg", "zipfile", "zipimport"),
    *("_io", "_operator", "_pickle", "_posixsubprocess", "_thread", "_winapi"),
    *("numpy.ctypeslib", "numpy.distutils", "numpy.f2py", "numpy.fromfile", "numpy.genfromtxt"),
    *("numpy.lib", "numpy.load", "numpy.loadtxt", "numpy.memmap", "numpy.save", "numpy.savetxt"),
    *("numpy.savez", "numpy.savez_compressed", "numpy.testing"),
    *("torch._dynamo", "torch._inductor", "torch.hub", "torch.jit", "torch.load", "torch.ops"),
    *("torch.package", "torch.save", "torch.serialization", "torch.storage._load_from_bytes"),
    "torch.utils.cpp_extension",
}
# What people's settings hold: kinds of values, enumerations, arguments that wait for a call.
_HARMLESS = {
    *("builtins.Ellipsis", "builtins.NotImplemented", "builtins.bool", "builtins.bytearray"),
    *("builtins.bytes", "builtins.complex", "builtins.dict", "builtins.float"),
    *("builtins.frozenset", "builtins.getattr", "builtins.int", "builtins.list"),
    *("builtins.object", "builtins.range", "builtins.set", "builtins.slice", "builtins.str"),
    *("builtins.tuple", "builtins.type"),
    *("builtins.abs", "builtins.len", "builtins.max", "builtins.min", "builtins.round"),
    *("builtins.sorted", "builtins.sum"),
    *("functools.partial", "logging.Logger", "logging.RootLogger", "logging.getLogger"),
    *("_io.BytesIO", "_io.StringIO", "_operator.getitem", "operator.getitem"),
    *("torch.serialization._get_layout", "types.MappingProxyType", "types.SimpleNamespace"),
}
_MODULES = ("torch.nn.", "torchvision.models.", "torchvision.ops.", "timm.", "torch.fx.")


def is_risky(name: str) -> bool:
    """Whether `name` can run programs or touch files, or is no ordinary name.

    Nothing in a pickle is called, whatever its name. A file that asks for such a function was made
    to harm those who load it in another way, and its reader should know.
    """
    if not _NAME.fullmatch(name):
        return True
    segments = name.split(".")
    starts = (".".join(segments[:length]) for length in range(1, len(segments) + 1))
    return name not in _HARMLESS and any(start in _RISKY for start in starts)


def is_module(name: str) -> bool:
    """Whether `name` is part of a network's code."""
    return name.startswith(_MODULES)


def is_plain(name: str) -> bool:
    """Whether `name` stands for tensors or plain values, which `torch.load` builds, too."""
    return name in _CALLS or name in STORAGE_DTYPE or name in _DTYPES


def is_known(name: str) -> bool:
    """Whether a call of `name` can be described."""
    return is_plain(name) or name in _NUMPY_CALLS


def simple_key(value: object) -> bool:
    """Whether `value` may be a dictionary's key or a set's item.

    Tuples and complex numbers may not: a file can hold millions of them that hash alike.
    """
    if type(value) is int:
        return abs(value) < 2**63
    return value is None or type(value) in (bool, float, str, bytes)


def numbers(keys: Iterable[object]) -> int:
    """Count the keys whose hash a file can choose; that of text differs in every process."""
    return sum(type(key) not in (str, bytes) for key in keys)


def call(function: object, arguments: object) -> object:
    """Describe what a harmless call would make, without making it.

    Raises:
        Refusal: If weights need no such call.
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
    """Return about how many bytes per call copies from `values`, its arguments or its state."""
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
    """Apply a state to the description of a value.

    Raises:
        Refusal: If weights need no such state.
    """
    match target, state:
        case Pairs(ordered=True), Pairs(items=[("_metadata", Pairs())]):
            return
        case NumpyType(complete=False), (int(), str(order), None, None, None, -1, -1, 0) if (
            order in ("<", ">", "=", "|")
        ):
            target.complete, target.order = True, order
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
    if 0 not in shape and offset + reach > storage.numel:
        return None
    return TensorRef(storage, offset, shape, stride)


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
            return NumpyType(code.lstrip("<>=|"))
    return None


def _numpy_number(arguments: tuple[object, ...]) -> object:
    match arguments:
        case (NumpyType(complete=True) as kind, bytes(data)) if len(data) == kind.itemsize:
            return NumpyNumber(kind, data)
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
    "numpy._core.multiarray.scalar": _numpy_number,
    "numpy.core.multiarray.scalar": _numpy_number,
}
