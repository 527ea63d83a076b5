"""A generator network and a gradient reversal, for attacks that are learned."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.attacks.common.attack import full_precision
from fst_lightning.validate import check_number


class Generator(nn.Module):
    """A small convolutional autoencoder: images in [0, 1] to maps in [-1, 1] of the same size.

    It halves the resolution twice and doubles it twice. It normalizes groups of channels within an
    image, so that an image gets the same map in each mini-batch, in training and at test.

    Args:
        channels: Channels of the images.
        out_channels: Channels of the maps.
        width: Channels at half of the resolution, 1 or more; twice as many at a quarter.

    Raises:
        ValueError: If ``width`` is not a whole number of 1 or more.

    Example:
        >>> Generator(3, 1, width=4)(torch.rand(2, 3, 9, 12)).shape
        torch.Size([2, 1, 9, 12])
    """

    def __init__(self, channels: int, out_channels: int, width: int) -> None:
        super().__init__()
        check_number("width", width, low=1, whole=True)
        self.down_1 = _layer(channels, width, stride=2)
        self.down_2 = _layer(width, 2 * width, stride=2)
        self.up_1 = _layer(2 * width, width)
        self.out = nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the maps in full precision, even under autocast."""
        if len(images) == 0:  # Layers reject an empty mini-batch.
            return images.new_zeros(0, self.out.out_channels, *images.shape[2:])
        with full_precision(images):
            dtype, channels_last = self.out.weight.dtype, torch.channels_last
            half = self.down_1((images * 2 - 1).to(dtype, memory_format=channels_last))
            maps = self.up_1(_resize(self.down_2(half), half))
            return torch.tanh(self.out(_resize(maps, images))).to(images.dtype)


def _resize(maps: Tensor, like: Tensor) -> Tensor:
    return functional.interpolate(maps, like.shape[2:], mode="bilinear")


def _layer(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1),
        nn.GroupNorm(math.gcd(4, outputs), outputs),
        nn.ReLU(),
    )


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.scale * gradients[0], None


def reverse_gradient(values: Tensor, scale: float) -> Tensor:
    r"""The identity with a gradient multiplied by :math:`-\lambda`.

    One backward pass then trains two opponents: the parameters after it minimize the loss, and
    those before it maximize it.

    Args:
        values: Any tensor.
        scale: Factor :math:`\lambda`.

    Example:
        >>> x = torch.ones(1, requires_grad=True)
        >>> (3 * reverse_gradient(x, 0.5)).backward()
        >>> x.grad
        tensor([-1.5000])
    """
    return cast(Tensor, _Reversal.apply(values, scale))
