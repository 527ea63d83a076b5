"""The layers that can be the head of a classifier: linear ones, and convolutions that equal one."""

from __future__ import annotations

from typing import TypeGuard

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

Head = nn.Linear | nn.Conv2d
"""An ``nn.Linear``, or an ``nn.Conv2d`` with a 1x1 kernel."""


def is_head(layer: nn.Module) -> TypeGuard[Head]:
    """Whether a layer computes :math:`W x + b` at every position, and so can be a head.

    Example:
        >>> is_head(nn.Linear(8, 3)), is_head(nn.Conv2d(8, 3, 1)), is_head(nn.Conv2d(8, 3, 3))
        (True, True, False)
    """
    if isinstance(layer, nn.Conv2d):
        return (layer.kernel_size, layer.stride, layer.groups) == ((1, 1), (1, 1), 1)
    # nn.MultiheadAttention declares its output projection as the latter class.
    return isinstance(layer, nn.Linear) and not isinstance(layer, NonDynamicallyQuantizableLinear)


def num_outputs(head: Head) -> int:
    """Return the number of classes C of a head."""
    return head.out_channels if isinstance(head, nn.Conv2d) else head.out_features


def num_inputs(head: Head) -> int:
    """Return the number of features d of a head."""
    return head.in_channels if isinstance(head, nn.Conv2d) else head.in_features


def apply_head(head: Head, features: Tensor) -> Tensor:
    """Apply a head to one feature vector per image: ``(N, d)`` to ``(N, C)``."""
    if isinstance(head, nn.Conv2d):
        return head(features[:, :, None, None]).flatten(1)  # type: ignore[no-any-return]
    return head(features)  # type: ignore[no-any-return]


def weight_matrix(head: Head) -> Tensor:
    """Return the weight of a head as a matrix ``(C, d)``, a view of the parameter.

    Example:
        >>> weight_matrix(nn.Conv2d(8, 3, 1)).shape
        torch.Size([3, 8])
    """
    return head.weight.flatten(1)
