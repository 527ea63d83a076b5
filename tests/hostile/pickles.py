"""Pickles that would make the canary if anybody executed them: by gadget and by instruction."""

from __future__ import annotations

import pickle
from pathlib import Path

from tests.hostile.case import CANARY


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + b"(" + b"".join(arguments) + b"tR"


def get(thing: bytes, attribute: str) -> bytes:
    return call(name("builtins", "getattr"), thing, text(attribute))


def importing(module: str) -> bytes:
    return call(name("builtins", "__import__"), text(module))


_FILE = text(CANARY)
_CODE = text(f"open({CANARY!r}, 'w')")
_MKDIR = name("posix", "mkdir")
_LIST = b"](" + text("mkdir") + _FILE + b"e"

GADGETS: dict[str, tuple[bytes, str]] = {
    "os.system": (call(name("posix", "system"), text(f"mkdir {CANARY}")), "posix.system"),
    "os.mkdir": (call(_MKDIR, _FILE), "posix.mkdir"),
    "os.makedirs": (call(name("os", "makedirs"), _FILE), "os.makedirs"),
    "eval": (call(name("builtins", "eval"), _CODE), "builtins.eval"),
    "exec": (call(name("builtins", "exec"), _CODE), "builtins.exec"),
    "open": (call(name("io", "open"), _FILE, text("w")), "io.open"),
    "FileIO": (call(name("_io", "FileIO"), _FILE, text("w")), "_io.FileIO"),
    "codecs.open": (call(name("codecs", "open"), _FILE, text("w")), "codecs.open"),
    "subprocess": (call(name("subprocess", "call"), _LIST), "subprocess.call"),
    "Popen": (
        call(get(call(name("subprocess", "Popen"), _LIST), "wait")),
        "subprocess.Popen",
    ),
    "getattr of import": (call(get(importing("os"), "mkdir"), _FILE), "builtins.__import__"),
    "import_module": (
        call(get(call(name("importlib", "import_module"), text("os")), "mkdir"), _FILE),
        "importlib.import_module",
    ),
    "partial": (
        call(call(name("functools", "partial"), _MKDIR, _FILE)),
        "functools.partial",
    ),
    "methodcaller": (
        call(
            call(name("operator", "methodcaller"), text("mkdir")),
            call(name("pathlib", "Path"), _FILE),
        ),
        "operator.methodcaller",
    ),
    "pickle in pickle": (
        call(
            name("_pickle", "loads"),
            call(
                name("_codecs", "encode"),
                text((b"\x80\x02" + call(_MKDIR, _FILE) + b".").decode("latin1")),
                text("latin1"),
            ),
        ),
        "_pickle.loads",
    ),
    "compile": (
        call(
            name("builtins", "eval"),
            call(name("builtins", "compile"), _CODE, text("x"), text("eval")),
        ),
        "builtins.compile",
    ),
    "log file": (call(name("logging", "FileHandler"), _FILE), "logging.FileHandler"),
    "zip file": (call(name("zipfile", "ZipFile"), _FILE, text("w")), "zipfile.ZipFile"),
    "database": (call(name("sqlite3", "connect"), _FILE), "sqlite3.connect"),
    "torch.save": (call(name("torch.serialization", "save"), b"}", _FILE), "torch.serialization"),
    "numpy.save": (call(name("numpy", "savetxt"), _FILE, b"]"), "numpy.savetxt"),
    "timeit": (
        call(name("timeit", "timeit"), _CODE, text("pass"), name("time", "time"), b"K\x01"),
        "timeit.timeit",
    ),
    "name of Python 2": (
        call(name("__builtin__", "open"), _FILE, text("w")),
        "builtins.open",
    ),
}
"""The pickle without its head and end, and the name that the refusal has to show."""


def make_canary(path: str) -> str:
    """A function whose name tells nothing about what it does."""
    Path(path).touch()
    return path


UNKNOWN = call(name("tests.hostile.pickles", "make_canary"), _FILE)
"""A call of a function that no list of dangerous names knows."""

_TUPLE = name("builtins", "tuple")
_MAP = call(name("builtins", "map"), _MKDIR, b"](" + _FILE + b"e")
_HIDDEN = text("posix") + b"r\x40\x42\x0f\x00" + text("mkdir") + b"r\x41\x42\x0f\x00"

INSTRUCTIONS: dict[str, bytes] = {
    "REDUCE": _MKDIR + _FILE + b"\x85R",
    "INST": b"(" + _FILE + b"iposix\nmkdir\n",
    "OBJ": b"(" + _MKDIR + _FILE + b"o",
    "NEWOBJ": _TUPLE + b"(" + _MAP + b"t\x81",
    "NEWOBJ_EX": _TUPLE + b"(" + _MAP + b"t}\x92",
    "BUILD": call(
        call(name("functools", "partial"), name("builtins", "print"))
        + b"("
        + _MKDIR
        + b"("
        + _FILE
        + b"t}}tb"
    ),
    "STACK_GLOBAL": text("posix") + text("mkdir") + b"\x93" + _FILE + b"\x85R",
    "STACK_GLOBAL of short texts": b"\x8c\x05posix\x8c\x05mkdir\x93" + _FILE + b"\x85R",
    "STACK_GLOBAL from the memo": _HIDDEN
    + b"00j\x40\x42\x0f\x00j\x41\x42\x0f\x00\x93"
    + _FILE
    + b"\x85R",
    "STACK_GLOBAL of a copy": text("mkdir")
    + text("posix")
    + b"20"
    + text("mkdir")
    + b"\x93"
    + _FILE
    + b"\x85R",
    "a name in the memo": _MKDIR + b"r\x40\x42\x0f\x000j\x40\x42\x0f\x00" + _FILE + b"\x85R",
    "EXT1": b"\x82\xf0" + _FILE + b"\x85R",
    "EXT4": b"\x84\xf0\x00\x00\x00" + _FILE + b"\x85R",
    "a frame": b"\x95\x00\x00\x00\x00\x00\x00\x00\x00" + _MKDIR + _FILE + b"\x85R",
    "a second program": b"\x80\x04" + _MKDIR + _FILE + b"\x85R",
}
"""The same call by every instruction that can make one."""


def bare(body: bytes, protocol: int = 2) -> bytes:
    return b"\x80" + bytes([protocol]) + body + b"."


def unpickled(body: bytes) -> object:
    """What an ordinary unpickler makes of it: never outside of the corpus's own test."""
    return pickle.loads(bare(body))
