"""What a reader hands on: tensors by name, and the facts beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fst_lightning.checkpoints.errors import Refusal, shown

__all__ = ["Content", "check_count", "check_name", "checked_tensors"]

_NAME_LIMIT = 1_000
_TENSOR_LIMIT = 100_000
# Those that torch can compute with; quantized files have others, which mean little by themselves.
_DTYPES = {
    torch.bool,
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.complex64, torch.complex128),
}


@dataclass(frozen=True, slots=True)
class Content:
    """A file's tensors, the text of its card, other plain facts, and keys of other networks."""

    format: str
    tensors: dict[str, Tensor]
    card: str | None
    extra: dict[str, object] = field(default_factory=dict)
    others: tuple[str, ...] = ()


def check_count(tensors: int) -> None:
    """Refuse more tensors than any network has.

    Raises:
        Refusal: saying how many are the limit.
    """
    if tensors > _TENSOR_LIMIT:
        raise Refusal(f"holds {tensors:,} tensors", f"{_TENSOR_LIMIT:,} are the limit")


def check_name(name: object) -> str:
    """Return the name of a tensor.

    Raises:
        Refusal: If it is no short text.
    """
    if type(name) is not str or not 1 <= len(name) <= _NAME_LIMIT:
        raise Refusal(
            f"has a tensor named {shown(name)}",
            f"Names are text of 1 to {_NAME_LIMIT:,} characters",
        )
    return name


def checked_tensors(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return detached CPU tensors, after checking names and kinds.

    Raises:
        Refusal: If a name is no short text, or a tensor is not an ordinary dense one.
    """
    check_count(len(named))
    tensors: dict[str, Tensor] = {}
    for name, tensor in named.items():
        check_name(name)
        if (
            type(tensor) not in (Tensor, torch.nn.Parameter)
            or tensor.layout != torch.strided
            or tensor.device.type != "cpu"
            or tensor.is_quantized
            or tensor.dtype not in _DTYPES
        ):
            raise Refusal(
                f"holds the sparse, quantized or otherwise special tensor {shown(name)}",
                "Save ordinary dense tensors",
            )
        tensors[name] = tensor.detach()
    return tensors
