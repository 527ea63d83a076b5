"""Undoes the preparation of a network that was never tuned."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


class Preparation:
    """Remember a network before a defense prepares it, so that the preparation can be undone.

    A learning rate finder, a refused fit or a fit without steps would otherwise leave a network
    with an untrained head. Only the tensors that the preparation changes are kept.

    Args:
        net: The network, not yet prepared.

    Example:
        >>> net = nn.Linear(3, 2)
        >>> original = net.weight.detach().clone()
        >>> preparation = Preparation(net)
        >>> with torch.no_grad(): _ = net.weight.zero_()
        >>> preparation.settle()
        >>> preparation.undo()
        >>> torch.equal(net.weight, original)
        True
    """

    def __init__(self, net: nn.Module) -> None:
        self._net = net
        self._before = {name: value.clone() for name, value in _tensors(net).items()}
        self._after: dict[str, Tensor] = {}

    def settle(self) -> None:
        """Discard unchanged tensors. Call it after the network was prepared."""
        now = _tensors(self._net)
        changed = [
            name
            for name, value in self._before.items()
            if name in now and not _equal(value, now[name])
        ]
        self._before = {name: self._before[name] for name in changed}
        self._after = {name: now[name].clone() for name in changed}

    @torch.no_grad()
    def undo(self) -> None:
        """Restore all tensors that have not changed since the preparation.

        Weights that were loaded in the meantime stay. A second call does nothing.
        """
        now = _tensors(self._net)
        for name, value in self._after.items():
            if name in now and _equal(value, now[name]):
                now[name].copy_(self._before[name])
        self._before, self._after = {}, {}


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    named = [*net.named_parameters(), *net.named_buffers()]
    return {name: value.detach() for name, value in named if not is_lazy(value)}


def _equal(kept: Tensor, now: Tensor) -> bool:
    # The Trainer may have moved the network since, or cast it to half precision.
    return kept.shape == now.shape and torch.equal(kept.to(now.device, now.dtype), now)
