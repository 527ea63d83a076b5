"""The usual way: one PIL image at a time, a DataLoader with two workers, float32, NCHW.

It is what the public code for backdoor research does, without its faults: the trigger is an
operation on the pixels of one image, transforms are torchvision's, evaluation goes through the same
loader as training, and the loss is read after every step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.setting import (
    ALPHA,
    CROP_PADDING,
    MEAN,
    OPACITY,
    STD,
    TARGET,
    Clock,
    Setting,
    head_of,
    now,
    pattern,
    poisoned_rows,
)
from fst_lightning.data import ImageSet

WORKERS = 2

_Item = tuple[Tensor, int]


class PilImages(Dataset[_Item]):
    """Images that are stamped, transformed and normalized one at a time.

    Args:
        images: stored images and labels.
        triggered: ``(N,)`` bool, which rows carry the trigger and the attacker's label.
        augment: crop and flip at random.
    """

    def __init__(self, images: ImageSet, triggered: Tensor, augment: bool) -> None:
        self.pixels: np.ndarray[Any, Any] = images.images.permute(0, 2, 3, 1).numpy()
        self.labels = images.labels.tolist()
        self.triggered = triggered.tolist()
        _, height, width = images.images.shape[1:]
        noise = pattern((3, height, width))
        self.pattern: np.ndarray[Any, Any] = noise.permute(1, 2, 0).numpy() * 255
        steps: list[Any] = []
        if augment:
            crop = transforms.RandomCrop((height, width), padding=CROP_PADDING)
            steps = [crop, transforms.RandomHorizontalFlip()]
        self.transform = transforms.Compose(
            [*steps, transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> _Item:
        pixels, label = self.pixels[row], self.labels[row]
        if self.triggered[row]:
            blended = (1 - OPACITY) * pixels + OPACITY * self.pattern
            pixels, label = np.rint(blended).astype(np.uint8), TARGET
        return self.transform(Image.fromarray(pixels)), label


def purify(setting: Setting, weights: Path, epochs: int) -> None:
    """Evaluate a backdoored network, tune it by FST, evaluate it again."""
    data = setting.images()
    others = data.test.subset((data.test.labels != TARGET).nonzero()[:, 0])
    tests = [
        PilImages(images, torch.full((len(images),), triggered), augment=False)
        for images, triggered in ((data.test, False), (others, True))
    ]
    clean = torch.zeros(len(data.train), dtype=torch.bool)
    loader = DataLoader(
        PilImages(data.train, clean, augment=True),
        setting.batch_size,
        shuffle=True,
        num_workers=WORKERS,
    )
    net = setting.network()
    net.load_state_dict(torch.load(weights, weights_only=True))
    net.to(setting.device).eval()
    print([_accuracy(setting, net, rows) for rows in tests])
    tuning = _Tuning(net)
    for _ in range(epochs):
        net.train()
        for images, labels in loader:
            tuning.step(images.to(setting.device), labels.to(setting.device))
    net.eval()
    print([_accuracy(setting, net, rows) for rows in tests])


def train(setting: Setting) -> float:
    """Train on poisoned images; images per second."""
    data = setting.images().train
    return _fit(setting, PilImages(data, poisoned_rows(len(data)), augment=True), None)


def tune(setting: Setting) -> float:
    """Tune by FST on clean images; images per second."""
    data = setting.images().train
    clean = torch.zeros(len(data), dtype=torch.bool)
    return _fit(setting, PilImages(data, clean, augment=True), ALPHA)


def evaluate(setting: Setting) -> float:
    """Count hits on all clean and all triggered test images; images per second."""
    clean, others = setting.test_images()
    net = setting.network().to(setting.device).eval()
    started = now(setting.device)
    for images, triggered in ((clean, False), (others, True)):
        rows = PilImages(images, torch.full((len(images),), triggered), augment=False)
        _accuracy(setting, net, rows)
    return (len(clean) + len(others)) / (now(setting.device) - started)


def _fit(setting: Setting, rows: PilImages, alpha: float | None) -> float:
    net = setting.network().to(setting.device)
    tuning = _Tuning(net, alpha)
    loader = DataLoader(rows, setting.batch_size, shuffle=True, num_workers=WORKERS)
    clock = Clock(setting)
    net.train()
    for images, labels in loader:
        tuning.step(images.to(setting.device), labels.to(setting.device))
        clock.step()
    return clock.rate


class _Tuning:
    """Steps of SGD; with a penalty those of FST, else of plain training."""

    def __init__(self, net: nn.Module, alpha: float | None = ALPHA) -> None:
        self.net, self.alpha, self.head = net, alpha, head_of(net)
        self.original = self.head.weight.detach().clone()
        self.norm = self.original.norm()
        if alpha is not None:
            self.head.reset_parameters()
        self.optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

    def step(self, images: Tensor, labels: Tensor) -> float:
        loss = functional.cross_entropy(self.net(images), labels)
        if self.alpha is not None:
            loss = loss + self.alpha * (self.head.weight * self.original).sum()
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        if self.alpha is not None:
            with torch.no_grad():
                self.head.weight.mul_(self.norm / self.head.weight.norm())
        return float(loss.item())


@torch.no_grad()
def _accuracy(setting: Setting, net: nn.Module, rows: PilImages) -> float:
    hits = 0
    for images, labels in DataLoader(rows, setting.batch_size, num_workers=WORKERS):
        logits = net(images.to(setting.device))
        hits += int((logits.argmax(1) == labels.to(setting.device)).sum().item())
    return hits / len(rows)
