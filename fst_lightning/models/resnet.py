"""Residual networks for small images, with torchvision's parameter names."""

import torch
from torch import Tensor, nn

from fst_lightning.models.bounds import check_bounds
from fst_lightning.models.shortcut import shortcut_convolution


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: ``relu(x' + bn2(conv2(relu(bn1(conv1(x))))))``.

    ``x'`` is ``x``, or a strided 1x1 convolution of it if the shape changes.

    Source: He et al., "Deep Residual Learning for Image Recognition", arXiv 1512.03385.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the output.
        stride: Stride of the first convolution.

    Shapes:
        ``(N, in_channels, H, W)`` to ``(N, channels, ceil(H / stride), ceil(W / stride))``.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                shortcut_convolution(in_channels, channels, stride), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        output: Tensor = self.relu(x + shortcut)
        return output


class SmallImageResNet(nn.Module):
    """A ResNet of basic blocks whose stem keeps the resolution: 3x3, stride 1, no pooling.

    Four stages of ``width``, ``2 width``, ``4 width`` and ``8 width`` channels; all but the first
    halve the resolution. Parameters are named as in torchvision's ``resnet18``.

    Source: He et al., "Deep Residual Learning for Image Recognition", arXiv 1512.03385.

    Args:
        num_classes: Number of classes, at least 1.
        width: Channels of the first stage, in [1, 4096].
        blocks: Blocks in each stage, in [1, 50].

    Shapes:
        Images ``(N, 3, H, W)`` to logits ``(N, num_classes)``; any size from 1x1 up.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(self, num_classes: int, width: int, blocks: int) -> None:
        check_bounds(num_classes=num_classes, width=width, blocks=blocks)
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(width, width, blocks, stride=1)
        self.layer2 = _stage(width, 2 * width, blocks, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, blocks, stride=2)
        self.layer4 = _stage(4 * width, 8 * width, blocks, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * width, num_classes)
        initialize_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of normalized images."""
        x = self.relu(self.bn1(self.conv1(images)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


def small_resnet(num_classes: int, width: int = 16, blocks: int = 1) -> SmallImageResNet:
    """Build a ResNet that trains in seconds on a CPU.

    Args:
        num_classes: Number of classes, at least 1.
        width: Channels of the first stage, in [1, 4096].
        blocks: Blocks in each of the four stages, in [1, 50].

    Example:
        >>> small_resnet(10)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    return SmallImageResNet(num_classes, width=width, blocks=blocks)


def resnet18(num_classes: int, width: int = 64) -> SmallImageResNet:
    """Build the ResNet-18 that papers use for CIFAR-10, CIFAR-100 and GTSRB.

    The stem is 3x3 with stride 1 and has no max-pooling; otherwise, names included, it is
    torchvision's ``resnet18``.

    Args:
        num_classes: Number of classes, at least 1.
        width: Channels of the first stage, in [1, 4096]; 64 as published.
    """
    return SmallImageResNet(num_classes, width=width, blocks=2)


def initialize_convolutions(net: nn.Module) -> None:
    """Draw every convolution from ``N(0, 2 / fan_out)`` and set its bias to zero, in place.

    Source: He et al., "Delving Deep into Rectifiers", arXiv 1502.01852.

    Args:
        net: Network whose ``nn.Conv2d`` layers are drawn again.
    """
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    rest = (BasicBlock(channels, channels, stride=1) for _ in range(blocks - 1))
    return nn.Sequential(BasicBlock(in_channels, channels, stride), *rest)
