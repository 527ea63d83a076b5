"""The interface of all checks of a purified network, and their data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fst_lightning.defenses.common.clean_data import LabeledImages
from fst_lightning.defenses.common.whole_set import keep_modes

_BATCH = 500


@dataclass(frozen=True)
class Rates:
    """Clean accuracy, attack success rate and robust accuracy, each in [0, 1].

    Example:
        >>> Rates(0.9, 0.1, 0.8).asr
        0.1
    """

    ca: float
    asr: float
    ra: float


@dataclass(frozen=True)
class Subject:
    """The networks before and after a defense, and the data of an attacker who knows the trigger.

    Attributes:
        backdoored: The network before the defense, in evaluation mode; a check changes copies.
        purified: The network after the defense, in evaluation mode.
        train: Training images as they were before the attack, with true labels.
        poisoned: The poisoned training images, with their training labels.
        stamp: Adds the trigger to images of ``train``: ``(N, C, H, W)`` to the same.
        test: Clean test images.
        triggered: Triggered test images that count, with true labels.
        wanted: ``(logits, true labels)`` to the labels that count as a success for the attacker.
        make_clean: Trains a network without a backdoor by the same recipe.

    Networks and images are on one device.
    """

    backdoored: nn.Module
    purified: nn.Module
    train: LabeledImages
    poisoned: LabeledImages
    stamp: Callable[[Tensor], Tensor]
    test: LabeledImages
    triggered: LabeledImages
    wanted: Callable[[Tensor, Tensor], Tensor]
    make_clean: Callable[[], nn.Module]

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.train.device


class RobustnessCheck(ABC):
    """An attack on a purified network, and its measurement.

    A new check is a subclass in its own file and a YAML file in ``conf/robustness/``.
    """

    @abstractmethod
    def run(self, subject: Subject, generator: torch.Generator) -> dict[str, Any]:
        """Run the check.

        Args:
            subject: The networks and data, unchanged.
            generator: A CPU generator, the only source of random numbers.

        Returns:
            Figures for ``results.json``: plain values, fractions in [0, 1].
        """


@torch.no_grad()
def rates_of(
    net: nn.Module, subject: Subject, shift: Callable[[Tensor], Tensor] | None = None
) -> Rates:
    """Measure a network on the test images of a subject, in evaluation mode.

    Args:
        net: The network, on the device of the images.
        subject: The subject with the images.
        shift: Changes the *triggered* images, in [0, 1]; None keeps them.
    """
    with keep_modes(net):
        net.eval()
        hits = {"ca": 0, "asr": 0, "ra": 0}
        for images, labels in subject.test.batches(_BATCH):
            hits["ca"] += int((net(images).argmax(1) == labels).sum())
        for images, labels in subject.triggered.batches(_BATCH):
            if shift is not None:
                images = subject.triggered.normalize(shift(subject.triggered.pixels(images)))
            logits = net(images).float()
            hits["ra"] += int((logits.argmax(1) == labels).sum())
            hits["asr"] += int((logits.argmax(1) == subject.wanted(logits, labels)).sum())
    return Rates(
        hits["ca"] / len(subject.test),
        hits["asr"] / len(subject.triggered),
        hits["ra"] / len(subject.triggered),
    )
