"""VGG-19 with BatchNorm for small images."""

import torch
from torch import Tensor, nn

from fst_lightning.models.bounds import check_bounds
from fst_lightning.models.resnet import initialize_convolutions

STAGES = ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512))
"""(convolutions, channels) of configuration E; 2x2 max-pooling ends each stage."""

SMALLEST_IMAGE = 2 ** len(STAGES)


class SmallImageVGG(nn.Module):
    """Configuration E with BatchNorm, global average pooling and a single linear layer.

    The features are named as in torchvision's ``vgg19_bn``. The three wide linear layers that were
    published for 224x224 images are left out, as is usual for small ones.

    Source: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
    Recognition", arXiv 1409.1556.

    Args:
        num_classes: Number of classes, at least 1.

    Shapes:
        Images ``(N, 3, H, W)`` to logits ``(N, num_classes)``; H and W at least 32.

    Raises:
        ValueError: If ``num_classes`` is out of its range, or the images are too small.
    """

    def __init__(self, num_classes: int) -> None:
        check_bounds(num_classes=num_classes)
        super().__init__()
        layers: list[nn.Module] = []
        in_channels = 3
        for convolutions, channels in STAGES:
            for _ in range(convolutions):
                layers += [
                    nn.Conv2d(in_channels, channels, 3, padding=1),
                    nn.BatchNorm2d(channels),
                    nn.ReLU(inplace=True),
                ]
                in_channels = channels
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(in_channels, num_classes)
        initialize_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of normalized images."""
        height, width = images.shape[-2:]
        if min(height, width) < SMALLEST_IMAGE:
            raise ValueError(
                f"Expected images of at least {SMALLEST_IMAGE}x{SMALLEST_IMAGE} pixels for VGG-19, "
                f"which halves them {len(STAGES)} times, but got {height}x{width}. "
                f"Set `data.image_size={SMALLEST_IMAGE}` or choose another model."
            )
        x = self.avgpool(self.features(images))
        logits: Tensor = self.classifier(torch.flatten(x, 1))
        return logits


def vgg19_bn(num_classes: int) -> SmallImageVGG:
    """Build VGG-19 with BatchNorm for small images.

    Args:
        num_classes: Number of classes, at least 1.
    """
    return SmallImageVGG(num_classes)
