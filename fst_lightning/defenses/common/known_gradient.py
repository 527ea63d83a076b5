"""Losses whose gradient is known before the backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_SCALE = 1024.0
"""Keeps gradients in float16 from vanishing; a power of two rounds nothing in other types."""


def gradients(
    loss: Tensor, inputs: Sequence[Tensor], *, retain_graph: bool = False
) -> tuple[Tensor | None, ...]:
    """The gradients of a loss, computed now.

    Args:
        loss: A scalar.
        inputs: The tensors to differentiate in.
        retain_graph: Whether the graph is needed again.

    Returns:
        One gradient per input; None for an input that the loss does not depend on.

    Example:
        >>> weight = torch.ones(2, requires_grad=True)
        >>> gradients(3 * weight.sum(), [weight])
        (tensor([3., 3.]),)
    """
    found = torch.autograd.grad(
        loss * _SCALE, list(inputs), retain_graph=retain_graph, allow_unused=True
    )
    return tuple(None if gradient is None else gradient / _SCALE for gradient in found)


def with_gradients(
    loss: Tensor, inputs: Sequence[Tensor], known: Sequence[Tensor | None]
) -> Tensor:
    """A loss of the same value that has these gradients, and no graph behind them.

    A pass through the network can so serve two purposes: its graph gives several gradients at once
    and is freed, and the optimizer still gets its gradient in the backward pass of the step.

    Args:
        loss: A scalar.
        inputs: The parameters.
        known: The gradient of the loss in each of them; None for zero.

    Example:
        >>> weight = torch.ones(2, requires_grad=True)
        >>> with_gradients(torch.tensor(5.0), [weight], [torch.tensor([1.0, 2.0])]).backward()
        >>> weight.grad
        tensor([1., 2.])
    """
    pairs = [
        (value, slope) for value, slope in zip(inputs, known, strict=True) if slope is not None
    ]
    values, slopes = [value for value, _ in pairs], [slope for _, slope in pairs]
    result: Tensor = _Known.apply(loss.detach(), len(values), *values, *slopes)
    return result


def settled(loss: Tensor, inputs: Sequence[Tensor], *, retain_graph: bool = False) -> Tensor:
    """The loss with its gradient in these inputs computed now, and in no others.

    Args:
        loss: A scalar.
        inputs: The parameters.
        retain_graph: Whether the graph is needed again.

    Example:
        >>> weight, other = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
        >>> settled((weight * other).sum(), [weight]).backward()
        >>> weight.grad, other.grad
        (tensor([1., 1.]), None)
    """
    return with_gradients(loss, inputs, gradients(loss, inputs, retain_graph=retain_graph))


class _Known(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, count: int, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors[count:])
        ctx.count = count
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = outer
        scaled = (scale.to(slope.dtype) * slope for slope in ctx.saved_tensors)
        return (None, None, *scaled, *[None] * ctx.count)
