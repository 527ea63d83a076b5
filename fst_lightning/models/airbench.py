"""A small network that learns CIFAR-10 for about a hundredth of a ResNet-18's arithmetic.

Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024, arXiv 2404.00498.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.models.bounds import check_bounds

_PATCH = 2
_EPSILON = 5e-4
_FIRST_EPOCHS = 3
_BIAS_RATE = 64.0


class Airbench(nn.Module):
    r"""Whitened 2x2 patches, three groups of two convolutions, and a head without bias.

    The first layer is :math:`x \mapsto (V/\sqrt{\lambda + \varepsilon}) \cdot \mathrm{patch}(x)`
    with the eigenvectors :math:`V` and eigenvalues :math:`\lambda` of the covariance of training
    patches, and its negative: it is computed by :meth:`initialize` and does not change. Logits are
    :math:`W \phi(x) / 9`.

    Args:
        num_classes: Number of classes, at least 1.
        width: Channels of the first group, at least 1; the other two have four times as many.

    Example:
        >>> net = Airbench(10, width=8)
        >>> net(torch.zeros(2, 3, 32, 32)).shape, net.head.bias is None
        (torch.Size([2, 10]), True)
    """

    def __init__(self, num_classes: int, width: int = 64) -> None:
        super().__init__()
        check_bounds(num_classes=num_classes, width=width)
        patch = 3 * _PATCH**2
        self.whiten = nn.Conv2d(3, 2 * patch, _PATCH)
        self.whiten.weight.requires_grad_(False)
        widths = [2 * patch, width, 4 * width, 4 * width]
        self.groups = nn.Sequential(*(_Group(*pair) for pair in pairwise(widths)))
        self.head = nn.Linear(widths[-1], num_classes, bias=False)
        self.logit_scale = 1 / 9

    def forward(self, images: Tensor) -> Tensor:
        """Classify normalized images ``(N, 3, H, W)``: logits ``(N, num_classes)``."""
        features = self.groups(functional.gelu(self.whiten(images)))
        features = functional.adaptive_max_pool2d(features, 1).flatten(1)
        logits: Tensor = self.head(features) * self.logit_scale
        return logits

    @torch.no_grad()
    def initialize(self, images: Tensor) -> None:
        """Compute the whitening layer from training images, before training.

        Args:
            images: ``(N, 3, H, W)``, normalized; about 5,000 are enough.
        """
        channels = images.shape[1]
        rows = (
            functional.unfold(images.float().cpu(), _PATCH)
            .transpose(1, 2)
            .reshape(-1, channels * _PATCH**2)
        )
        # Not centered: the mean is treated like any other direction.
        values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
        scaled = (vectors / (values + _EPSILON).sqrt()).T.flip(0)
        filters = scaled.reshape(-1, channels, _PATCH, _PATCH)
        self.whiten.weight.copy_(torch.cat([filters, -filters]))
        if self.whiten.bias is not None:
            self.whiten.bias.zero_()

    def begin_epoch(self, epoch: int) -> None:
        """Train the first layer's bias only for three epochs: its gradient is expensive."""
        if self.whiten.bias is not None:
            self.whiten.bias.requires_grad_(epoch < _FIRST_EPOCHS)

    def learning_rate_scale(self, name: str) -> float:
        """The factor of the learning rate of a parameter: 64 for BatchNorm's biases."""
        return _BIAS_RATE if ".norm" in name and name.endswith("bias") else 1.0


class _Group(nn.Module):
    """Convolution, pooling and convolution; the convolutions start as the identity."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv1 = _identity_conv(channels_in, channels_out)
        self.norm1 = _norm(channels_out)
        self.conv2 = _identity_conv(channels_out, channels_out)
        self.norm2 = _norm(channels_out)

    def forward(self, features: Tensor) -> Tensor:
        # Images of a few pixels have nothing left to pool.
        pooled = self.conv1(features)
        if min(pooled.shape[-2:]) >= 2:
            pooled = functional.max_pool2d(pooled, 2)
        features = functional.gelu(self.norm1(pooled))
        return functional.gelu(self.norm2(self.conv2(features)))


def _identity_conv(channels_in: int, channels_out: int) -> nn.Conv2d:
    conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
    kept = min(channels_in, channels_out)
    with torch.no_grad():
        nn.init.dirac_(conv.weight[:kept, :kept])
    return conv


def _norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4)
    norm.weight.requires_grad_(False)
    return norm


def airbench(num_classes: int, width: int = 64) -> Airbench:
    """Build an :class:`Airbench`.

    Args:
        num_classes: Number of classes, at least 1.
        width: Channels of the first group, at least 1.

    Raises:
        ValueError: If a number is out of range.
    """
    return Airbench(num_classes, width)
