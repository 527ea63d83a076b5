"""What a reader hands on: tensors by name, and the facts beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fst_lightning.checkpoints.errors import Refusal, shown

__all__ = ["Content", "checked_tensors"]

_NAME_LIMIT = 1_000
_TENSOR_LIMIT = 100_000


@dataclass(frozen=True, slots=True)
class Content:
    """A file's tensors, the text of its card, and other plain facts."""

    format: str
    tensors: dict[str, Tensor]
    card: str | None
    extra: dict[str, object] = field(default_factory=dict)


def checked_tensors(named: Mapping[object, Tensor]) -> dict[str, Tensor]:
    """Return detached CPU tensors, after checking names and kinds.

    Raises:
        Refusal: a name is no short text, or a tensor is not an ordinary dense one.
    """
    if len(named) > _TENSOR_LIMIT:
        raise Refusal(f"holds {len(named):,} tensors", f"{_TENSOR_LIMIT:,} are the limit")
    tensors: dict[str, Tensor] = {}
    for name, tensor in named.items():
        if type(name) is not str or not 1 <= len(name) <= _NAME_LIMIT:
            raise Refusal(
                f"has a tensor named {shown(name)}",
                f"Names are text of 1 to {_NAME_LIMIT:,} characters",
            )
        if (
            type(tensor) not in (Tensor, torch.nn.Parameter)
            or tensor.layout != torch.strided
            or tensor.device.type != "cpu"
            or tensor.is_quantized
        ):
            raise Refusal(
                f"holds the sparse, quantised or otherwise special tensor {shown(name)}",
                "Save ordinary dense tensors",
            )
        tensors[name] = tensor.detach()
    return tensors
