"""The autograd graph behind a tensor."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def nodes(tensor: Tensor) -> list[Any]:
    """The nodes of the graph behind a tensor, in no particular order; none if it has no graph.

    Args:
        tensor: Any tensor.

    Example:
        >>> import torch
        >>> [node.name() for node in nodes(torch.ones(2, requires_grad=True).sum())]
        ['SumBackward0', 'torch::autograd::AccumulateGrad']
    """
    found: list[Any] = []
    waiting, seen = [tensor.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found.append(node)
        waiting.extend(parent for parent, _ in node.next_functions)
    return found


def leaves(tensor: Tensor) -> list[nn.Parameter]:
    """The tensors whose gradient a backward pass from here would fill, in no particular order.

    Args:
        tensor: Any tensor.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> sum(p is layer.weight for p in leaves(layer.weight.sum()))
        1
    """
    found = (getattr(node, "variable", None) for node in nodes(tensor))
    return [leaf for leaf in found if leaf is not None]
