"""Read a pickle without running it, to know what loading it would do."""

from __future__ import annotations

import io
import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterable
from dataclasses import dataclass, field

from fst_lightning.checkpoints.errors import STATE_DICT_ADVICE, Refusal, shown
from fst_lightning.checkpoints.formats.pickle_rules import (
    STORAGE_DTYPE,
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
from fst_lightning.checkpoints.formats.pickle_values import (
    Foreign,
    Named,
    Pairs,
    StorageRef,
    TensorRef,
)

__all__ = ["PICKLE_LIMIT", "Scan", "scan_pickle"]

PICKLE_LIMIT = 64 * 2**20
"""Most bytes of a pickle; the tensors' bytes lie outside it."""

_INSTRUCTION_LIMIT = 5_000_000
# An empty dictionary is one byte of a pickle and a hundred of memory.
_CONTAINER_LIMIT = 2_000_000
_CONTAINERS = {
    *("MARK", "EMPTY_LIST", "EMPTY_DICT", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("REDUCE", "NEWOBJ"),
}
_COPY_LIMIT = 256 * 2**20
_TENSOR_LIMIT = 200_000
# Numbers can be chosen so that a dictionary takes time that grows with their square.
_NUMBER_KEY_LIMIT = 100_000
_NAMES_KEPT = 1_000
# torch.save names each function once, and refers to it later.
_NAME_LIMIT = 100_000


@dataclass(slots=True)
class Scan:
    """What one pickle holds.

    `root` is the described value and `storages` the referenced bytes by key. `foreign` says what
    the pickle names besides tensors and plain values, `unusual` which known name it uses in an
    unknown way. `end` is the position after the pickle.
    """

    root: object = None
    storages: dict[str, StorageRef] = field(default_factory=dict)
    foreign: Refusal | None = None
    unusual: Refusal | None = None
    end: int = 0


def scan_pickle(data: bytes, start: int = 0) -> Scan:
    """Describe the pickle at `start` in `data`; nothing in it is imported or called.

    A value that only foreign code could build is described as `Foreign`.

    Args:
        data: Bytes that hold the pickle.
        start: Position of its first byte.

    Raises:
        Refusal: If it names a function that runs programs or touches files, or is damaged or too
            large.
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
    names.check()
    if refusal is not None:
        raise refusal
    machine.scan.foreign = names.refusal()
    machine.scan.end = stream.tell()
    return machine.scan


class _Names:
    """Collects every name that the pickle asks for, also those built on the stack."""

    def __init__(self) -> None:
        self.foreign: dict[str, None] = {}
        self._risky: str | None = None
        self._count = 0
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

    def check(self) -> None:
        """Refuse names that show that the pickle was made to harm."""
        if self._risky is not None:
            raise Refusal(
                f"asks Python for {shown(self._risky)}, which could run code when loaded",
                "Never load it with pickle; ask for a safetensors file or a state_dict",
            )

    def refusal(self) -> Refusal | None:
        """Return what the pickle needs besides tensors and plain values, if it does."""
        for name in self.foreign:
            if is_module(name):
                return _whole_model(next(iter(self.foreign)))
        return next(map(_foreign, self.foreign), None)

    def _add(self, full: str) -> None:
        self._count += 1
        if self._count > _NAME_LIMIT:
            raise Refusal(
                f"names more than {_NAME_LIMIT:,} functions and classes",
                "Ask for a file with the state_dict alone",
            )
        if is_plain(full):
            return
        if self._risky is None and is_risky(full):
            self._risky = full
        if len(self.foreign) < _NAMES_KEPT:
            self.foreign[full] = None


class _Machine:
    """The pickle's stack machine, for the instructions of protocol 2, which `torch.save` writes."""

    def __init__(self) -> None:
        self.scan = Scan()
        self._foreign: dict[str, Foreign] = {}
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
                    self._note(
                        Refusal("holds an oversized integer", "Ask for the state_dict alone")
                    )
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
            case "POP":
                stack.pop()
            case "POP_MARK":
                self._to_mark()
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
                stack.append(self._call(function, arguments))
            case "NEWOBJ":
                _, cls = stack.pop(), stack.pop()
                stack.append(self._stand_in(cls))
            case "BUILD":
                state = stack.pop()
                self._build(stack[-1], state)
            case "BINPERSID":
                stack.append(self._storage(stack.pop()))
            case "STOP":
                self.scan.root = stack.pop()
            case _:
                raise Refusal(
                    f"uses the pickle instruction {opcode}, which torch.save does not write",
                    "Save it again with torch.save and no pickle_protocol",
                )

    def _call(self, function: object, arguments: object) -> object:
        if not (isinstance(function, Named) and is_known(function.name)):
            return self._stand_in(function)
        self._charge(arguments)
        try:
            result = call(function, arguments)
        except Refusal as unusual:
            return self._stand_in(
                function, self._note(unusual) if is_plain(function.name) else None
            )
        if isinstance(result, TensorRef):
            self._tensors += 1
            if self._tensors > _TENSOR_LIMIT:
                raise Refusal(
                    f"holds more than {_TENSOR_LIMIT:,} tensors", "Ask for the state_dict alone"
                )
        return result

    def _build(self, target: object, state: object) -> None:
        if isinstance(target, Foreign):
            if isinstance(state, Pairs) and any(key == "_parameters" for key, _ in state.items):
                target.why = _whole_model(target.name)
            return
        self._charge(state)
        try:
            build(target, state)
        except Refusal as unusual:
            self._note(unusual)

    def _stand_in(self, made_by: object, why: Refusal | None = None) -> Foreign:
        """Return what stands for a value that is not built; one object for each maker."""
        if isinstance(made_by, Foreign):
            return made_by
        name = made_by.name if isinstance(made_by, Named) else "?"
        if name not in self._foreign:
            self._foreign[name] = Foreign(name, why or _foreign(name))
        return self._foreign[name]

    def _note(self, why: Refusal) -> Refusal:
        self.scan.unusual = self.scan.unusual or why
        return why.with_traceback(None)  # whose frames hold the values

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
        if len(flat) % 2 or not isinstance(target, Pairs | Foreign):
            raise IndexError
        if isinstance(target, Foreign):
            return
        keys = [key for key in flat[::2] if not isinstance(key, Foreign | Named)]
        if not all(map(simple_key, keys)):
            self._note(
                Refusal(
                    "uses a dictionary key that is neither text nor a number",
                    STATE_DICT_ADVICE,
                )
            )
        self._count_keys(keys)
        target.items.extend(zip(flat[::2], flat[1::2], strict=True))

    def _count_keys(self, keys: Iterable[object]) -> None:
        self._number_keys += numbers(keys)
        if self._number_keys > _NUMBER_KEY_LIMIT:
            raise Refusal(
                f"uses more than {_NUMBER_KEY_LIMIT:,} numbers as dictionary keys",
                "Ask for a file with the state_dict alone",
            )

    def _to_mark(self) -> list[object]:
        self._stack = self._marks.pop()
        return self._stack

    def _storage(self, identity: object) -> object:
        match identity:
            case ("storage", Named(name=kind), str(key), str(), int(numel)) | (
                "storage",
                Named(name=kind),
                str(key),
                str(),
                int(numel),
                None,
            ) if kind in STORAGE_DTYPE and 0 <= numel < 2**48:
                storage = StorageRef(key, STORAGE_DTYPE[kind], numel)
            case ("module", Named(name=name) as cls, *_):
                self._note(_whole_model(name))  # its class, with its source code
                return cls
            case ("storage", Named() as kind, *_):
                return self._stand_in(
                    kind,
                    self._note(
                        Refusal(
                            "refers to a kind of tensor data that cannot be checked",
                            "Save ordinary dense tensors: torch.save(model.state_dict(), ...)",
                        )
                    ),
                )
            case _:
                raise Refusal("is damaged", "Copy or download the file again")
        if self.scan.storages.setdefault(storage.key, storage) != storage:
            raise Refusal("gives two types to the same data", "Copy or download the file again")
        return storage


def _foreign(name: str) -> Refusal:
    if is_module(name):
        return _whole_model(name)
    return Refusal(
        f"asks Python for {shown(name)}, which is neither a tensor nor plain data",
        STATE_DICT_ADVICE,
    )


def _whole_model(name: str) -> Refusal:
    return Refusal(
        f"holds a whole pickled model ({shown(name)}), which runs code when loaded",
        STATE_DICT_ADVICE,
    )


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
    if isinstance(target, Foreign):
        return
    if type(target) is not list:
        raise IndexError
    target.extend(values)
