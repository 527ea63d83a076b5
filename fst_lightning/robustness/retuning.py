"""Retuning attack (RA): a few poisoned images bring back a hidden backdoor.

Min et al., "Uncovering, explaining, and mitigating the superficial safety of backdoor defense",
NeurIPS 2024, arXiv 2410.09838.

Example:
    ``python purify.py attack=blended defense=fst robustness=[retuning]``
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fst_lightning.defenses.common.clean_data import LabeledImages
from fst_lightning.defenses.common.whole_set import tune
from fst_lightning.robustness.check import RobustnessCheck, Subject, rates_of
from fst_lightning.validate import check_number


class RetuningAttack(RobustnessCheck):
    """Tune the purified network on clean images and a few poisoned ones.

    A network that has forgotten its backdoor learns nothing from so few images. O-ASR is the attack
    success rate before, P-ASR the one after. The control is a network that never had a backdoor,
    tuned on the same images in the same order.

    Args:
        poisoned_images: Number of poisoned training images, 1 or more; at most as many as there
            are.
        share: Share of the training images to tune on, greater than 0 and at most 1.
        epochs: Passes over these images, 1 or more.
        lr: Constant learning rate of SGD with momentum 0.9, greater than 0.
        batch_size: Images per step, 2 or more.
        control: Whether to retune a network without a backdoor too.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> RetuningAttack(poisoned_images=5).poisoned_images
        5
    """

    def __init__(
        self,
        poisoned_images: int = 5,
        share: float = 0.02,
        epochs: int = 5,
        lr: float = 0.01,
        batch_size: int = 128,
        control: bool = False,
    ) -> None:
        check_number("poisoned_images", poisoned_images, low=1, whole=True)
        check_number("share", share, low_open=True, high=1)
        check_number("epochs", epochs, low=1, whole=True)
        check_number("lr", lr, low_open=True)
        check_number("batch_size", batch_size, low=2, whole=True)
        self.poisoned_images = poisoned_images
        self.share = share
        self.epochs = epochs
        self.lr = lr
        self.batch_size = batch_size
        self.control = control

    def run(self, subject: Subject, generator: torch.Generator) -> dict[str, Any]:
        """Measure, retune a copy, and measure again."""
        again = generator.clone_state()
        before = rates_of(subject.purified, subject)
        after = rates_of(self.retuned(subject, generator), subject)
        control = {}
        if self.control:
            clean = subject.make_clean()
            control["clean_o_asr"] = rates_of(clean, subject).asr
            retuned = self.retuned(replace(subject, purified=clean), again)
            control["clean_p_asr"] = rates_of(retuned, subject).asr
        return {
            "o_asr": before.asr,
            "p_asr": after.asr,
            "ca_before": before.ca,
            "ca_after": after.ca,
            "ra_before": before.ra,
            "ra_after": after.ra,
            "poisoned_images": min(self.poisoned_images, len(subject.poisoned)),
            "images": self._count(subject),
            **control,
        }

    def retuned(self, subject: Subject, generator: torch.Generator) -> nn.Module:
        """A copy of the purified network that was tuned on the mixture."""
        net = copy.deepcopy(subject.purified)
        net.requires_grad_(True)
        tune(
            net,
            self.mixture(subject, generator),
            generator,
            epochs=self.epochs,
            lr=self.lr,
            batch_size=self.batch_size,
            decay=False,
        )
        return net.eval()

    def mixture(self, subject: Subject, generator: torch.Generator) -> LabeledImages:
        """Clean training images, the first of which are replaced by poisoned ones."""
        train, poisoned = subject.train, subject.poisoned
        clean = train.subset(
            torch.randperm(len(train), generator=generator)[: self._count(subject)]
        )
        number = min(self.poisoned_images, len(poisoned))
        chosen = poisoned.subset(torch.randperm(len(poisoned), generator=generator)[:number])
        clean.images[:number], clean.labels[:number] = chosen.images, chosen.labels
        return clean

    def _count(self, subject: Subject) -> int:
        least = min(self.poisoned_images, len(subject.poisoned)) + 1
        return min(len(subject.train), max(least, round(self.share * len(subject.train))))
