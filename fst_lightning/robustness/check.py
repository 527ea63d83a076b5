"""What every check of a purified network is, and what it is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fst_lightning.defenses.common.clean_data import LabelledImages
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
    """Two networks, and what an attacker has who knows the trigger.

    Attributes:
        backdoored: The network before the defense, in evaluation mode; a check changes copies.
        purified: The same after it.
        train: Training images as they were before the attack, with true labels.
        poisoned: The poisoned training images, with the labels that were trained.
        stamp: Puts the trigger on images of ``train``: ``(N, C, H, W)`` to the same.
        test: Clean test images.
        triggered: Triggered test images of those that count, with true labels.
        wanted: ``(logits, true labels)`` to the labels that are a success for the attacker.
        make_clean: Makes a network that was never backdoored, trained by the same recipe.

    Networks and images are on one device.
    """

    backdoored: nn.Module
    purified: nn.Module
    train: LabelledImages
    poisoned: LabelledImages
    stamp: Callable[[Tensor], Tensor]
    test: LabelledImages
    triggered: LabelledImages
    wanted: Callable[[Tensor, Tensor], Tensor]
    make_clean: Callable[[], nn.Module]

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.train.device


class RobustnessCheck(ABC):
    """Something that is done to a purified network, and measured.

    Another one is a subclass in its own file, and a YAML in ``conf/robustness/``.
    """

    @abstractmethod
    def run(self, subject: Subject, generator: torch.Generator) -> dict[str, Any]:
        """Do it.

        Args:
            subject: Stays as it is.
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
        net: The network, where the images are.
        subject: Whose images.
        shift: Makes other images of the *triggered* ones, in [0, 1]; None leaves them.
    """
    with keep_modes(net):
        net.eval()
        hits = {"ca": 0, "asr": 0, "ra": 0}
        for images, labels in subject.test.batches(_BATCH):
            hits["ca"] += int((net(images).argmax(1) == labels).sum())
        for images, labels in subject.triggered.batches(_BATCH):
            if shift is not None:
                images = subject.triggered.normalise(shift(subject.triggered.pixels(images)))
            logits = net(images).float()
            hits["ra"] += int((logits.argmax(1) == labels).sum())
            hits["asr"] += int((logits.argmax(1) == subject.wanted(logits, labels)).sum())
    return Rates(
        hits["ca"] / len(subject.test),
        hits["asr"] / len(subject.triggered),
        hits["ra"] / len(subject.triggered),
    )
