"""What a pickle describes, as inert records: nothing named in it is imported or called."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Inert", "Named", "NumpyType", "Pairs", "StorageRef", "TensorRef"]


@dataclass(frozen=True, slots=True)
class Named:
    """A function or class that the pickle names, such as `torch.FloatStorage`."""

    name: str


@dataclass(eq=False, slots=True)
class Pairs:
    """A dictionary, kept as pairs so that no key from the file is hashed."""

    items: list[tuple[object, object]] = field(default_factory=list)
    ordered: bool = False

    def fields(self) -> dict[str, object]:
        """Return the items whose keys are strings; the last of equal keys counts."""
        return {key: value for key, value in self.items if type(key) is str}


@dataclass(frozen=True, slots=True)
class StorageRef:
    """Bytes that lie elsewhere in the file."""

    key: str
    itemsize: int
    numel: int


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor over a `StorageRef`."""

    storage: StorageRef
    shape: tuple[int, ...]


@dataclass(eq=False, slots=True)
class NumpyType:
    """A numeric NumPy type; `complete` once its byte order was set."""

    itemsize: int
    integer: bool = False
    complete: bool = False


@dataclass(eq=False, slots=True)
class Inert:
    """Any other harmless value: a NumPy array or number, a set, a size, a device."""

    kind: str
    complete: bool = True
