"""The last layers of a network, found in its module tree."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

_IMAGE_CHANNELS = 4  # A convolution with so few input channels reads images.


def last_layers(
    module: nn.Module, candidates: Collection[nn.Module], rivals_only: bool = False
) -> list[nn.Module]:
    """Return the candidates whose output no other layer takes.

    The function runs no forward pass. It goes through the module tree and connects the children of
    every module:

    - In an ``nn.Sequential``, each child takes the output of the child before it.
    - Elsewhere, a child takes the output of a child that is registered before it if the widths
      agree: as many inputs as the other has outputs, or a multiple of its channels (a flattened
      feature map), or the sum of all outputs that nothing else takes (a concatenation).

    A layer is followed if another one takes its output. Children that are not connected are
    parallel.

    Args:
        module: The network, or a module that contains it.
        candidates: Layers of the module.
        rivals_only: Whether only candidates count as followers; otherwise every linear layer,
            convolution, recurrent or embedding layer does.

    Returns:
        The candidates that nothing follows, in order of registration.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))
        >>> last_layers(net, [net[0], net[2]])
        [Linear(in_features=4, out_features=3, bias=True)]
    """
    reader = _Reader(candidates, rivals_only)
    reader.read(module)
    return [layer for layer in candidates if id(layer) not in reader.followed]


class _Width(NamedTuple):
    """Numbers per position that go into or come out of a layer."""

    size: int
    spatial: bool
    """Whether there are several positions, which a network may flatten."""


class _Part(NamedTuple):
    """A child of some module, seen from outside."""

    layers: tuple[nn.Module, ...]
    """The candidates inside."""
    inputs: _Width | None
    outputs: tuple[_Width, ...]
    """The possible outputs: that of the last child, or all unused ones, concatenated."""
    follows: bool
    """Whether it follows the layers whose output it takes. A norm does not follow linear layers."""
    norm: bool = False


class _Reader:
    def __init__(self, candidates: Collection[nn.Module], rivals_only: bool) -> None:
        self.candidates = {id(layer) for layer in candidates}
        self.rivals_only = rivals_only
        self.followed: set[int] = set()
        self._seen: set[int] = set()

    def read(self, module: nn.Module) -> _Part | None:
        """Connect what is inside; None for a module without layers, or one that was seen."""
        if id(module) in self._seen:
            return None
        self._seen.add(id(module))
        widths = _widths(module)
        is_candidate = id(module) in self.candidates
        if widths is not None:
            mixes = not _is_norm(module)
            follows = is_candidate or (mixes and not self.rivals_only)
            for child in module.modules():
                self._seen.add(id(child))
            inputs, outputs = widths
            return _Part((module,) if is_candidate else (), inputs, (outputs,), follows, not mixes)
        found = [self.read(child) for child in module.children()]
        parts = [part for part in found if part is not None]
        if not parts:
            return None
        loose = self._connect(parts, chain=isinstance(module, nn.Sequential))
        return _Part(
            tuple(layer for part in parts for layer in part.layers),
            parts[0].inputs,
            (*parts[-1].outputs, *_together(loose)),
            any(part.follows for part in parts),
        )

    def _connect(self, parts: list[_Part], chain: bool) -> list[_Part]:
        takers: list[list[int]] = [[] for _ in parts]
        for this, part in enumerate(parts[1:], 1):
            if chain:
                givers = [this - 1]
            else:
                givers = [other for other in range(this) if _fit(parts[other].outputs, part)]
                loose = [other for other in range(this) if not takers[other]]
                if not givers and _fit(_together([parts[other] for other in loose]), part):
                    givers = loose
            for giver in givers:
                takers[giver].append(this)
        followed = [False] * len(parts)
        for this in reversed(range(len(parts))):
            followed[this] = any(parts[taker].follows or followed[taker] for taker in takers[this])
            normed = any(parts[taker].norm for taker in takers[this])
            self.followed.update(
                id(layer)
                for layer in parts[this].layers
                if followed[this] or (normed and isinstance(layer, nn.Conv2d))
            )
        return [part for part, taken in zip(parts, takers, strict=True) if not taken]


def _fit(given: tuple[_Width, ...], taker: _Part) -> bool:
    taken = taker.inputs
    return taken is not None and any(
        width.size == taken.size
        or (width.spatial and not taken.spatial and taken.size % width.size == 0)
        for width in given
    )


def _together(parts: list[_Part]) -> tuple[_Width, ...]:
    """Return the width of several outputs side by side; nothing for fewer than two."""
    widths = [part.outputs[0] for part in parts]
    if len(widths) < 2:
        return ()
    return (_Width(sum(w.size for w in widths), any(w.spatial for w in widths)),)


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, _NormBase | nn.GroupNorm | nn.LayerNorm | nn.RMSNorm)


def _widths(module: nn.Module) -> tuple[_Width | None, _Width] | None:
    """Return the input and output widths of a layer; None if the module is not a layer."""
    match module:
        case nn.Linear():
            return _Width(module.in_features, False), _Width(module.out_features, False)
        case _ConvNd():
            read = _Width(module.in_channels, True)
            return (
                None if read.size <= _IMAGE_CHANNELS else read,
                _Width(module.out_channels, True),
            )
        case nn.MultiheadAttention():
            return (_Width(module.embed_dim, False),) * 2
        case nn.RNNBase():
            hidden = (module.proj_size or module.hidden_size) * (1 + module.bidirectional)
            return _Width(module.input_size, False), _Width(hidden, False)
        case nn.Embedding() | nn.EmbeddingBag():
            return None, _Width(module.embedding_dim, False)
        case nn.LayerNorm() | nn.RMSNorm():
            return (_Width(math.prod(module.normalized_shape[-1:]), False),) * 2
        case nn.GroupNorm():
            return (_Width(module.num_channels, True),) * 2
        case _NormBase():
            spatial = not isinstance(module, nn.BatchNorm1d | nn.InstanceNorm1d)
            return (_Width(module.num_features, spatial),) * 2
    return None
