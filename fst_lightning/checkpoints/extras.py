"""Tensors beside a network's weights, which other tools leave in a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Normalization", "find_normalization", "is_auxiliary", "is_bookkeeping"]

# Of stochastic weight averaging, and of the counter of operations `thop`.
_COUNTERS = {"n_averaged", "total_ops", "total_params"}
# Vision transformers of other versions store what the architecture determines.
_DERIVED = {"attn_mask", "num_batches_tracked", "relative_coords_table", "relative_position_index"}
_BYTE = 255


@dataclass(frozen=True, eq=False)
class Normalization:
    """A layer in front of a network that normalizes images in [0, 1].

    Args:
        names: Of its two tensors in the file.
        mean: Per channel.
        std: Per channel, positive.
    """

    names: tuple[str, str]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def is_bookkeeping(name: str, tensor: Tensor) -> bool:
    """Whether a tensor that the network lacks has no effect on its outputs."""
    last = name.rpartition(".")[2]
    return last in _DERIVED or (last in _COUNTERS and tensor.numel() == 1)


def is_auxiliary(name: str, prefix: str) -> bool:
    """Whether a tensor belongs to an auxiliary head, which only training uses."""
    return name.casefold().startswith(f"{prefix}aux".casefold()) and "." in name[len(prefix) :]


def find_normalization(names: Iterable[str], tensors: Mapping[str, Tensor]) -> Normalization | None:
    """Return the only pair of `mean` and `std` for 1 to 4 channels among tensors, if there is one.

    Values for images in [0, 255] are converted.

    Args:
        names: Of the tensors that the network lacks.
        tensors: By name.
    """
    known = set(names)
    pairs = [
        (name, name.removesuffix("mean") + "std")
        for name in known
        if name.endswith("mean") and name.removesuffix("mean") + "std" in known
    ]
    if len(pairs) != 1:
        return None
    mean, std = (tensors[name].flatten() for name in pairs[0])
    if not 1 <= mean.numel() <= 4 or mean.numel() != std.numel():
        return None
    if not (mean.is_floating_point() and std.is_floating_point()):
        return None
    if not (bool(mean.isfinite().all()) and bool(std.isfinite().all()) and bool((std > 0).all())):
        return None
    scale = _BYTE if bool((mean > 2).any()) else 1
    values = ([round(float(value) / scale, 6) for value in tensor] for tensor in (mean, std))
    return Normalization(pairs[0], tuple(next(values)), tuple(next(values)))
