"""Networks, images and Trainers small enough that a training run takes well under a second."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from fst_lightning.data import ImageSet, Source

NUM_CLASSES = 4
SIZE = 8


def images(count: int, size: int = SIZE, seed: int = 0) -> Tensor:
    """Random uint8 images (count, 3, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def labels(count: int, num_classes: int = NUM_CLASSES, seed: int = 1) -> Tensor:
    """Random labels (count,), int64."""
    return torch.randint(num_classes, (count,), generator=torch.Generator().manual_seed(seed))


def rows(count: int, num_classes: int = NUM_CLASSES, size: int = SIZE, seed: int = 0) -> ImageSet:
    """Random images with random labels."""
    return ImageSet(images(count, size, seed), labels(count, num_classes, seed + 1))


def conv_net(
    num_classes: int = NUM_CLASSES, *, bias: bool = True, dropout: float = 0.0, seed: int = 0
) -> nn.Sequential:
    """Two convolutions with BatchNorm and a head named ``head``; about 1,500 parameters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential()
        net.add_module("conv1", nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False))
        net.add_module("bn1", nn.BatchNorm2d(8))
        net.add_module("relu1", nn.ReLU())
        net.add_module("conv2", nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False))
        net.add_module("bn2", nn.BatchNorm2d(12))
        net.add_module("relu2", nn.ReLU())
        net.add_module("pool", nn.AdaptiveAvgPool2d(1))
        net.add_module("flatten", nn.Flatten())
        net.add_module("dropout", nn.Dropout(dropout))
        net.add_module("head", nn.Linear(12, num_classes, bias=bias))
        return net


def linear_net(
    num_features: int, num_classes: int = NUM_CLASSES, *, bias: bool = True, seed: int = 0
) -> nn.Sequential:
    """A head ``1`` alone, on flattened inputs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(num_features, num_classes, bias=bias))


class MemorySource(Source):
    """A source of images that are in memory already."""

    def __init__(
        self, train: ImageSet, test: ImageSet, num_classes: int = NUM_CLASSES, **options: Any
    ) -> None:
        super().__init__(image_size=None, **options)
        self.parts = train, test, tuple(f"class {label}" for label in range(num_classes))

    def _load(self) -> tuple[ImageSet, ImageSet, tuple[str, ...]]:
        return self.parts


def source(
    num_train: int = 60,
    num_test: int = 30,
    num_classes: int = NUM_CLASSES,
    size: int = SIZE,
    seed: int = 0,
    **options: Any,
) -> MemorySource:
    """A source of random images."""
    train = rows(num_train, num_classes, size, seed)
    test = rows(num_test, num_classes, size, seed + 100)
    return MemorySource(train, test, num_classes, **options)


class Batches:
    """Clean batches ``(images, labels)`` in an order that is another one in every pass."""

    def __init__(self, data: ImageSet, batch_size: int, seed: int = 0) -> None:
        self.data = data
        self.batch_size = batch_size
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return -(-len(self.data) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.data), generator=self.generator)
        for start in range(0, len(order), self.batch_size):
            index = order[start : start + self.batch_size]
            yield self.data.images[index], self.data.labels[index]


def trainer(folder: Path, max_epochs: int = 1, **options: Any) -> L.Trainer:
    """A quiet Trainer on the CPU that writes nothing unless told to."""
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": folder,
    }
    return L.Trainer(max_epochs=max_epochs, **(quiet | options))
