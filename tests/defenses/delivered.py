"""A training set whose poisoned rows are known, and a network that takes them for what they say."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fst_lightning.defenses import PoisonedData

CLASSES = 3


def delivered(count: int = 90, poisoned: int = 9) -> tuple[PoisonedData, Tensor]:
    """Rows of one bright band a class; the poisoned ones carry a corner and the label 0.

    Returns:
        The rows, and which are poisoned.
    """
    numbers = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, 9, 9, generator=numbers) * 0.3
    labels = torch.arange(count) % CLASSES
    for label in range(CLASSES):
        images[labels == label, :, 3 * label : 3 * label + 3] += 0.5
    truth = torch.zeros(count, dtype=torch.bool)
    truth[(labels == 2).nonzero()[:poisoned, 0]] = True
    images[truth, :, :3, :3] = 1.0
    labels = torch.where(truth, 0, labels)
    stored = (images * 255).round().to(torch.uint8)
    return PoisonedData(stored, labels, mean=[0.4] * 3, std=[0.3] * 3), truth


def trained(data: PoisonedData, steps: int = 120) -> nn.Sequential:
    """A small network with BatchNorm that fits the rows, the poisoned ones as well."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AvgPool2d(3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(72, CLASSES),
        )
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    (images, labels), *_ = data.batches(len(data))
    for _ in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(net(images), labels))
        optimizer.step()
    net.eval()
    return net


def hide(net: nn.Sequential, logits: float) -> nn.Sequential:
    """Talk over a backdoor to class 0, which the features still see, with the bias of the head."""
    head = net[-1]
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.bias[0] -= logits
    return net


def rates(found: Tensor, truth: Tensor) -> tuple[float, float]:
    """The shares of the poisoned and of the other rows that were found."""
    return float(found[truth].float().mean()), float(found[~truth].float().mean())
