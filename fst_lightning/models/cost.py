"""The memory that training a network will take."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

_COPIES_OF_PARAMETERS = 4  # with their gradients and an optimizer's two averages


def training_memory(make: Callable[[], nn.Module], *shapes: tuple[int, ...]) -> int:
    """Estimate the bytes of a training step without allocating them.

    The network is built on PyTorch's meta device, where tensors have shapes but no values. The
    estimate counts its parameters, their gradients and averages, and the outputs of its layers with
    their gradients.

    Args:
        make: Builds the network.
        shapes: Of the inputs of one mini-batch, float32.

    Example:
        >>> training_memory(lambda: nn.Linear(10, 20), (3, 10))
        4000
    """
    with torch.device("meta"):
        net = make()
        inputs = [torch.empty(shape) for shape in shapes]
    total = _COPIES_OF_PARAMETERS * sum(_bytes(parameter) for parameter in net.parameters())

    def count(module: nn.Module, arguments: Any, output: Any) -> None:
        nonlocal total
        if isinstance(output, Tensor) and not list(module.children()):
            total += 2 * _bytes(output)

    with ExitStack() as hooks:
        for module in net.modules():
            hooks.enter_context(module.register_forward_hook(count))
        net(*inputs)
    return total


def _bytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * tensor.element_size()
