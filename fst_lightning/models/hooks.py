"""Collects the inputs of a layer during a forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def inputs_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the first input of a layer, one tensor per call, while the context lasts.

    The tensors keep their gradient. The hook is removed when the context ends.

    Args:
        layer: The layer to watch.

    Yields:
        A list that grows by one tensor per call of the layer.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        >>> with inputs_of(net[1]) as inputs:
        ...     _ = net(torch.zeros(3, 3, 2, 2))
        >>> [part.shape for part in inputs]
        [torch.Size([3, 12])]
    """
    collected: list[Tensor] = []

    def collect(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        collected.append(inputs[0])

    with layer.register_forward_pre_hook(collect):
        yield collected
