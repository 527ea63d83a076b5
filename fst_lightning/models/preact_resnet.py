"""Pre-activation ResNet-18 for small images."""

import torch
from torch import Tensor, nn

from fst_lightning.models.bounds import check_bounds
from fst_lightning.models.resnet import initialize_convolutions
from fst_lightning.models.shortcut import shortcut_convolution


class PreActBlock(nn.Module):
    """A basic block that normalizes first: ``x' + conv2(relu(bn2(conv1(a))))``.

    ``a`` is ``relu(bn1(x))``; ``x'`` is ``x``, or a strided 1x1 convolution of ``a`` if the shape
    changes.

    Source: He et al., "Identity Mappings in Deep Residual Networks", arXiv 1603.05027.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the output.
        stride: Stride of the first convolution.

    Shapes:
        ``(N, in_channels, H, W)`` to ``(N, channels, ceil(H / stride), ceil(W / stride))``.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != channels:
            # In a Sequential, so that weights of other implementations only need new names.
            self.downsample = nn.Sequential(shortcut_convolution(in_channels, channels, stride))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        activated = self.relu(self.bn1(x))
        shortcut = x if self.downsample is None else self.downsample(activated)
        residual: Tensor = self.conv2(self.relu(self.bn2(self.conv1(activated))))
        return residual + shortcut


class PreActResNet(nn.Module):
    """A pre-activation ResNet with two blocks per stage and a stem that keeps the resolution.

    Weights of the implementation common in backdoor benchmarks fit with ``final_norm=False`` once
    ``shortcut`` is renamed to ``downsample`` and ``linear`` to ``fc``.

    Source: He et al., "Identity Mappings in Deep Residual Networks", arXiv 1603.05027.

    Args:
        num_classes: Number of classes, at least 1.
        width: Channels of the first stage, in [1, 4096].
        final_norm: Whether BatchNorm and ReLU follow the last stage, as published.

    Shapes:
        Images ``(N, 3, H, W)`` to logits ``(N, num_classes)``; any size from 1x1 up.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(self, num_classes: int, width: int = 64, final_norm: bool = True) -> None:
        check_bounds(num_classes=num_classes, width=width)
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.layer1 = _stage(width, width, stride=1)
        self.layer2 = _stage(width, 2 * width, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, stride=2)
        self.layer4 = _stage(4 * width, 8 * width, stride=2)
        self.norm = nn.BatchNorm2d(8 * width) if final_norm else nn.Identity()
        self.relu = nn.ReLU(inplace=True) if final_norm else nn.Identity()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * width, num_classes)
        initialize_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of normalized images."""
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(images)))))
        x = self.relu(self.norm(x))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


def preact_resnet18(num_classes: int, width: int = 64, final_norm: bool = True) -> PreActResNet:
    """Build the pre-activation ResNet-18 for small images.

    Args:
        num_classes: Number of classes, at least 1.
        width: Channels of the first stage, in [1, 4096]; 64 as published.
        final_norm: Whether BatchNorm and ReLU follow the last stage, as published; False for
            weights of implementations that leave them out.

    Example:
        >>> preact_resnet18(10, width=4)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    return PreActResNet(num_classes, width=width, final_norm=final_norm)


def _stage(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        PreActBlock(in_channels, channels, stride), PreActBlock(channels, channels, stride=1)
    )
