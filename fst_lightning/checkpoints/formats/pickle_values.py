"""What a pickle describes, as inert records: nothing named in it is imported or called."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from fst_lightning.checkpoints.errors import Refusal

__all__ = [
    "Foreign",
    "Inert",
    "Named",
    "NumpyNumber",
    "NumpyType",
    "Pairs",
    "StorageRef",
    "TensorRef",
]


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
    dtype: torch.dtype
    numel: int

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor over a `StorageRef`."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(eq=False, slots=True)
class NumpyType:
    """A numeric NumPy type such as `i8`; `complete` once its byte order was set."""

    code: str
    order: str = "<"
    complete: bool = False

    @property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return int(self.code[1:])


@dataclass(frozen=True, eq=False, slots=True)
class NumpyNumber:
    """A single NumPy number, as its bytes."""

    type: NumpyType
    data: bytes

    def whole(self) -> int | None:
        """Return the number if it is an integer."""
        kind = self.type.code[0]
        order: Literal["big", "little"] = "big" if self.type.order == ">" else "little"
        return int.from_bytes(self.data, order, signed=kind == "i") if kind in "iu" else None


@dataclass(eq=False, slots=True)
class Inert:
    """Any other plain value: a set, a size, a device."""

    kind: str


@dataclass(eq=False, slots=True)
class Foreign:
    """Stands for a value that only code from elsewhere could build; that code is never run.

    Args:
        name: The function or class that the pickle names.
        why: Says what it is, if it stands where a tensor is needed.
    """

    name: str
    why: Refusal
