"""What all contestants share: images, trigger, network, device and clock."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fst_lightning.data import Fake, ImageData, ImageSet
from fst_lightning.models import Head, find_head, resnet18

NUM_CLASSES = 10
POISON_RATIO = 0.1
TARGET = 0
OPACITY = 0.2
"""Of the pattern that is blended in (Blended, Chen et al., 2017)."""

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)
CROP_PADDING = 4
ALPHA = 0.2
"""Of FST's penalty."""

WARM_UP = 3
"""Steps before the clock starts: memory is allocated and kernels are chosen in them."""


@dataclass(frozen=True)
class Setting:
    """One cell of the benchmark.

    Attributes:
        width: of the ResNet-18; 64 is the full one.
        batch_size: images a step.
        steps: how many steps are timed.
        num_test: images that an evaluation takes, once clean and nearly once triggered.
        device: ``cpu`` or ``cuda``.
        train_images: how many training images there are; None: as many as the steps take.
    """

    width: int
    batch_size: int
    steps: int
    num_test: int
    device: str
    train_images: int | None = None

    @property
    def num_train(self) -> int:
        """How many training images there are."""
        return self.train_images or self.batch_size * (self.steps + WARM_UP)

    def images(self) -> ImageData:
        """Training and test images, generated."""
        return Fake(
            num_classes=NUM_CLASSES,
            num_train=self.num_train,
            num_test=self.num_test,
            mean=MEAN,
            std=STD,
            crop_padding=CROP_PADDING,
            horizontal_flip=True,
        ).load()

    def test_images(self) -> tuple[ImageSet, ImageSet]:
        """All test images, and those that get the trigger: of other classes than the target."""
        test = self.images().test
        return test, test.subset((test.labels != TARGET).nonzero()[:, 0])

    def network(self) -> nn.Module:
        """The same weights for everybody."""
        torch.manual_seed(0)
        return resnet18(NUM_CLASSES, width=self.width)


def pattern(shape: tuple[int, int, int]) -> Tensor:
    """The picture that is blended in: noise, ``(C, H, W)`` in [0, 1]."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def poisoned_rows(count: int) -> Tensor:
    """Which training rows carry the trigger, ``(N,)`` bool."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return order < round(POISON_RATIO * count)


def head_of(net: nn.Module) -> Head:
    """The linear head that FST acts on."""
    return find_head(net, num_classes=NUM_CLASSES)[1]


class Clock:
    """Images per second over the steps after the warm-up.

    Args:
        setting: says how many images a step takes, and on which device.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._steps = 0
        self._started = self._stopped = 0.0

    def step(self) -> None:
        """Take note of a finished step."""
        self._steps += 1
        if self._steps in (WARM_UP, WARM_UP + self.setting.steps):
            self._started, self._stopped = self._stopped, now(self.setting.device)

    @property
    def rate(self) -> float:
        """Images per second."""
        seconds = self._stopped - self._started
        return self.setting.steps * self.setting.batch_size / seconds


def now(device: str) -> float:
    """Seconds on the clock, once the device has finished what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
