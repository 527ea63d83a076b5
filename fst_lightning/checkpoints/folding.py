"""Weights that a file holds in parts: pruned, weight-normalized or spectrally normalized ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Fold", "fold"]

# How torch.nn.utils.parametrizations names the parts, and how torch.nn.utils does.
_PARAMETRIZED = re.compile(
    r"(.*\.)?parametrizations\.(\w+)\.(original|original0|original1|0\._[uv])"
)
_PARTS = {"original": "_orig", "original0": "_g", "original1": "_v", "0._u": "_u", "0._v": "_v"}


@dataclass(frozen=True, eq=False)
class Fold:
    """A weight and the parts that a file holds instead of it.

    Args:
        name: What the file would call the weight.
        weight: Made from the parts.
        parts: Names of the parts in the file.
        split: Makes parts, in this order, whose weight is a given one.
    """

    name: str
    weight: Tensor
    parts: tuple[str, ...]
    split: Callable[[Tensor], tuple[Tensor, ...]]

    @property
    def spectral(self) -> bool:
        """Whether the weight was divided by its spectral norm."""
        return len(self.parts) == 3


def fold(
    tensors: Mapping[str, Tensor], net_names: Iterable[str]
) -> tuple[dict[str, Tensor], tuple[Fold, ...]]:
    r"""Replace the parts of weights by the weights, unless the network has such parts itself.

    Pruning keeps :math:`W = W_{orig} \odot M`, weight normalization :math:`W = g\, V / \|V\|` and
    spectral normalization :math:`W = W_{orig} / (u^\top W_{orig} v)`, as in evaluation mode.

    Args:
        tensors: By the file's names.
        net_names: Names in the network's state_dict.

    Returns:
        Tensors by the file's names, and what was folded.

    Example:
        >>> parts = {"fc.weight_orig": torch.ones(1, 2), "fc.weight_mask": torch.eye(1, 2)}
        >>> fold(parts, ["fc.weight"])[0]
        {'fc.weight': tensor([[1., 0.]])}
    """
    own = {kind for _, kind, _ in _groups(net_names)}
    folds = []
    for name, kind, parts in _groups(tensors):
        made = None if kind in own or name in tensors else kind(*(tensors[p] for p in parts))
        if made is not None:
            folds.append(Fold(name, made[0], parts, made[1]))
    used = {part for folded in folds for part in folded.parts}
    whole = {name: tensor for name, tensor in tensors.items() if name not in used}
    return whole | {folded.name: folded.weight for folded in folds}, tuple(folds)


_Made = tuple[Tensor, Callable[[Tensor], tuple[Tensor, ...]]]
"""A weight, and how another one is split in the same way."""


def _pruned(original: Tensor, mask: Tensor) -> _Made | None:
    if original.shape != mask.shape or not original.is_floating_point():
        return None

    def split(weight: Tensor) -> tuple[Tensor, Tensor]:
        # what was tuned is zero no more
        return weight, ((mask != 0) | (weight.cpu() != 0)).to(mask.dtype)

    return original * mask.to(original.dtype), split


def _weight_norm(length: Tensor, direction: Tensor) -> _Made | None:
    shapes = zip(length.shape, direction.shape, strict=False)
    if length.dim() not in (0, direction.dim()) or any(g not in (1, v) for g, v in shapes):
        return None
    axes = [axis for axis, size in enumerate(length.shape) if size == 1]
    if length.dim() == 0:
        axes = list(range(direction.dim()))
    elif not axes:
        return None

    def norm(weight: Tensor) -> Tensor:
        keep = length.dim() > 0
        norms: Tensor = torch.linalg.vector_norm(weight.double(), dim=axes, keepdim=keep)
        return norms

    def split(weight: Tensor) -> tuple[Tensor, Tensor]:
        return norm(weight).to(weight.dtype), weight

    whole = direction.double() * (length.double() / norm(direction))
    return whole.to(direction.dtype), split


def _spectral_norm(original: Tensor, left: Tensor, right: Tensor) -> _Made | None:
    if original.dim() < 2 or left.dim() != 1 or right.dim() != 1:
        return None
    axis = 0 if left.numel() == original.shape[0] else 1
    if left.numel() != original.shape[axis] or left.numel() * right.numel() != original.numel():
        return None

    def norm(weight: Tensor) -> Tensor:
        matrix = weight.cpu().double().transpose(0, axis).flatten(1)
        length: Tensor = torch.dot(left.double(), matrix @ right.double())
        return length

    def split(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # so scaled, the weight is divided by 1
        return weight, (left.double() / norm(weight)).to(left.dtype), right

    return (original.double() / norm(original)).to(original.dtype), split


_KINDS: tuple[tuple[Callable[..., _Made | None], tuple[str, ...]], ...] = (
    (_pruned, ("_orig", "_mask")),
    (_weight_norm, ("_g", "_v")),
    (_spectral_norm, ("_orig", "_u", "_v")),
)


def _groups(
    names: Iterable[str],
) -> list[tuple[str, Callable[..., _Made | None], tuple[str, ...]]]:
    """Find names that belong together: of the weight, its kind, and the names of its parts."""
    known = {_old_style(name): name for name in names}
    found = []
    for kind, suffixes in _KINDS:
        for name in known:
            base = name.removesuffix(suffixes[0])
            if base != name and all(base + suffix in known for suffix in suffixes):
                found.append((base, kind, tuple(known[base + suffix] for suffix in suffixes)))
    return found


def _old_style(name: str) -> str:
    match = _PARAMETRIZED.fullmatch(name)
    return f"{match[1] or ''}{match[2]}{_PARTS[match[3]]}" if match else name
