"""Read a pickle without running it, to know what loading it would do."""

from __future__ import annotations

import io
import math
import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterable
from dataclasses import dataclass, field

from fst_lightning.checkpoints.errors import Refusal, shown
from fst_lightning.checkpoints.pickle_rules import (
    STORAGE_ITEMSIZE,
    build,
    call,
    is_allowed,
    is_module,
    is_numpy,
    is_risky,
    numbers,
    simple_key,
    weight,
)
from fst_lightning.checkpoints.pickle_values import Named, Pairs, StorageRef, TensorRef

__all__ = ["PICKLE_LIMIT", "Scan", "scan_pickle"]

PICKLE_LIMIT = 64 * 2**20
"""Most bytes of a pickle; the tensors' bytes lie outside it."""

_INSTRUCTION_LIMIT = 5_000_000
# An empty dictionary is one byte of a pickle and a hundred of memory.
_CONTAINER_LIMIT = 2_000_000
_CONTAINERS = {"MARK", "EMPTY_LIST", "EMPTY_DICT", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "REDUCE"}
_COPY_LIMIT = 256 * 2**20
_TENSOR_LIMIT = 200_000
# Numbers can be chosen so that a dictionary takes time that grows with their square.
_NUMBER_KEY_LIMIT = 100_000
_NAMES_KEPT = 1_000


@dataclass(slots=True)
class Scan:
    """What one pickle holds.

    `root` is the described value, `storages` the referenced bytes by key, `tensor_bytes` the
    size of all tensors, `numpy` the first NumPy name, `end` the position after the pickle.
    """

    root: object = None
    storages: dict[str, StorageRef] = field(default_factory=dict)
    tensor_bytes: int = 0
    numpy: str | None = None
    end: int = 0


def scan_pickle(data: bytes, start: int = 0) -> Scan:
    """Describe the pickle at `start` in `data`; nothing in it is imported or called.

    Args:
        data: bytes that hold the pickle.
        start: position of its first byte.

    Raises:
        Refusal: it names something that is no part of a checkpoint, or is damaged or too large.
    """
    stream = io.BytesIO(data)
    stream.seek(start)
    machine = _Machine()
    names = _Names()
    refusal: Refusal | None = None
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count >= _INSTRUCTION_LIMIT:
                raise Refusal(
                    f"holds more than {_INSTRUCTION_LIMIT:,} pickle instructions",
                    "Ask for a file with the state_dict alone",
                )
            names.see(opcode.name, argument)
            if refusal is None:
                # a name that comes later says more than a broken structure
                try:
                    machine.step(opcode.name, argument)
                except Refusal as found:
                    refusal = found
    except Refusal as found:
        refusal = found
    except Exception:
        refusal = Refusal("is cut short or damaged", "Copy or download the file again")
    names.judge()
    if refusal is not None:
        raise refusal
    machine.scan.numpy = names.numpy
    machine.scan.end = stream.tell()
    return machine.scan


class _Names:
    """Collects every name that the pickle asks for, also those built on the stack."""

    def __init__(self) -> None:
        self.foreign: dict[str, None] = {}
        self.numpy: str | None = None
        self._recent: list[object] = [None, None]
        self._memo: dict[int, object] = {}

    def see(self, opcode: str, argument: object) -> None:
        if opcode in ("GLOBAL", "INST"):
            self._add(_python3_name(argument))
        elif opcode == "STACK_GLOBAL":
            module, name = (str(part) if isinstance(part, str) else "?" for part in self._recent)
            self._add(f"{module}.{name}")
        elif opcode.startswith("EXT"):
            self._add(f"copyreg.extension {argument}")
        elif "PUT" in opcode or opcode == "MEMOIZE":
            key = len(self._memo) if opcode == "MEMOIZE" else argument
            if isinstance(key, int):
                self._memo[key] = self._recent[-1]
            return
        if opcode.endswith("GET") and isinstance(argument, int):
            argument = self._memo.get(argument)
        if isinstance(argument, str):
            self._recent = [self._recent[-1], argument]
        else:
            self._recent = [self._recent[-1], None] if argument is not None else self._recent

    def judge(self) -> None:
        if not self.foreign:
            return
        for name in self.foreign:
            if is_risky(name):
                raise Refusal(
                    f"asks Python for {shown(name)}, which could run code when loaded",
                    "Never load it with pickle; ask for a safetensors file or a state_dict",
                )
        for name in self.foreign:
            if is_module(name):
                raise Refusal(
                    f"holds a whole pickled model ({shown(next(iter(self.foreign)))}), which runs "
                    "code when loaded",
                    "Ask for a state_dict: torch.save(model.state_dict(), ...)",
                )
        raise Refusal(
            f"asks Python for {shown(next(iter(self.foreign)))}, which is neither a tensor nor "
            "plain data",
            "Ask for a state_dict: torch.save(model.state_dict(), ...)",
        )

    def _add(self, full: str) -> None:
        if is_numpy(full):
            self.numpy = self.numpy or full
        elif not is_allowed(full) and len(self.foreign) < _NAMES_KEPT:
            self.foreign[full] = None


class _Machine:
    """The pickle's stack machine, for the instructions that torch's restricted loader knows."""

    def __init__(self) -> None:
        self.scan = Scan()
        self._stack: list[object] = []
        self._marks: list[list[object]] = []
        self._memo: dict[int, object] = {}
        self._copied = 0
        self._tensors = 0
        self._containers = 0
        self._number_keys = 0

    def step(self, opcode: str, argument: object) -> None:
        stack = self._stack
        self._containers += opcode in _CONTAINERS
        if self._containers > _CONTAINER_LIMIT:
            raise Refusal(
                f"holds more than {_CONTAINER_LIMIT:,} lists, dictionaries and tuples",
                "Ask for a file with the state_dict alone",
            )
        try:
            self._step(opcode, argument, stack)
        except (IndexError, KeyError):
            raise Refusal("is damaged", "Copy or download the file again") from None

    def _step(self, opcode: str, argument: object, stack: list[object]) -> None:
        match opcode:
            case "PROTO":
                if argument != 2:
                    raise Refusal(
                        f"was written with pickle protocol {argument}",
                        "Save it again with torch.save and no pickle_protocol",
                    )
            case "BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "BINFLOAT":
                stack.append(argument)
            case "LONG1":
                if not isinstance(argument, int) or abs(argument) >= 2**96:
                    raise Refusal("holds an oversized integer", "Ask for the state_dict alone")
                stack.append(argument)
            case "SHORT_BINSTRING":
                if not isinstance(argument, str) or not argument.isascii():
                    raise Refusal("holds bytes where text belongs", "Save it with Python 3")
                stack.append(argument)
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode == "NEWTRUE")
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append(Pairs())
            case "MARK":
                self._marks.append(stack)
                self._stack = []
            case "TUPLE":
                self._to_mark().append(tuple(stack))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(opcode[-1])
                if len(stack) < size:
                    raise IndexError
                stack[-size:] = [tuple(stack[-size:])]
            case "APPEND":
                value = stack.pop()
                _extend(stack[-1], [value])
            case "APPENDS":
                _extend(self._to_mark()[-1], stack)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self._set_items(stack[-1], [key, value])
            case "SETITEMS":
                self._set_items(self._to_mark()[-1], stack)
            case "BINPUT" | "LONG_BINPUT":
                self._memo[_position(argument)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[_position(argument)])
            case "GLOBAL":
                stack.append(Named(_python3_name(argument)))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                self._charge(arguments)
                result = call(function, arguments)
                stack.append(result)
                if isinstance(result, TensorRef):
                    self._count(result)
            case "BUILD":
                state = stack.pop()
                self._charge(state)
                build(stack[-1], state)
            case "BINPERSID":
                stack.append(self._storage(stack.pop()))
            case "STOP":
                self.scan.root = stack.pop()
            case _:
                raise Refusal(
                    f"uses the pickle instruction {opcode}, which torch.save does not write",
                    "Save it again with torch.save and no pickle_protocol",
                )

    def _charge(self, arguments: object) -> None:
        # one long text may be named a million times, and each call would copy it
        self._copied += weight(arguments)
        for value in arguments if type(arguments) is tuple else ():
            if isinstance(value, list | Pairs):  # becomes a set, or another dictionary
                self._count_keys(value if isinstance(value, list) else (k for k, _ in value.items))
        if self._copied > _COPY_LIMIT:
            raise Refusal(
                "is made to fill the memory: it copies the same values over and over",
                "Ask for a file that torch.save(model.state_dict(), ...) wrote",
            )

    def _set_items(self, target: object, flat: list[object]) -> None:
        if not isinstance(target, Pairs) or len(flat) % 2:
            raise IndexError
        keys = flat[::2]
        if not all(map(simple_key, keys)):
            raise Refusal(
                "uses a dictionary key that is neither text nor a number",
                "Ask for a state_dict: torch.save(model.state_dict(), ...)",
            )
        self._count_keys(keys)
        target.items.extend(zip(keys, flat[1::2], strict=True))

    def _count_keys(self, keys: Iterable[object]) -> None:
        self._number_keys += numbers(keys)
        if self._number_keys > _NUMBER_KEY_LIMIT:
            raise Refusal(
                f"uses more than {_NUMBER_KEY_LIMIT:,} numbers as dictionary keys",
                "Ask for a file with the state_dict alone",
            )

    def _count(self, tensor: TensorRef) -> None:
        self._tensors += 1
        self.scan.tensor_bytes += math.prod(tensor.shape) * tensor.storage.itemsize
        if self._tensors > _TENSOR_LIMIT:
            raise Refusal(
                f"holds more than {_TENSOR_LIMIT:,} tensors", "Ask for the state_dict alone"
            )

    def _to_mark(self) -> list[object]:
        self._stack = self._marks.pop()
        return self._stack

    def _storage(self, identity: object) -> StorageRef:
        match identity:
            case ("storage", Named(name=kind), str(key), str(), int(numel)) | (
                "storage",
                Named(name=kind),
                str(key),
                str(),
                int(numel),
                None,
            ) if kind in STORAGE_ITEMSIZE and 0 <= numel < 2**48:
                storage = StorageRef(key, STORAGE_ITEMSIZE[kind], numel)
            case ("module", *_):
                raise Refusal(
                    "holds a whole pickled model, which runs code when loaded",
                    "Ask for a state_dict: torch.save(model.state_dict(), ...)",
                )
            case _:
                raise Refusal(
                    "refers to a kind of tensor data that cannot be checked",
                    "Save ordinary dense tensors: torch.save(model.state_dict(), ...)",
                )
        if self.scan.storages.setdefault(storage.key, storage) != storage:
            raise Refusal("gives two types to the same data", "Copy or download the file again")
        return storage


def _python3_name(argument: object) -> str:
    """Return the name that Python 3 looks up: protocols up to 2 hold Python 2's names."""
    module, _, name = str(argument).partition(" ")
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f"{module}.{name}"


def _position(argument: object) -> int:
    if not isinstance(argument, int):
        raise IndexError
    return argument


def _extend(target: object, values: list[object]) -> None:
    if type(target) is not list:
        raise IndexError
    target.extend(values)
