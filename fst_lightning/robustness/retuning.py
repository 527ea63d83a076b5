"""Retuning attack (RA): a few poisoned images bring a backdoor back that was only hidden.

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

from fst_lightning.defenses.common.channel_masks import check_number
from fst_lightning.defenses.common.clean_data import LabelledImages
from fst_lightning.defenses.common.whole_set import tune
from fst_lightning.robustness.check import RobustnessCheck, Subject, rates_of


class RetuningAttack(RobustnessCheck):
    """Tune the purified network on clean images, a handful of which are poisoned ones.

    A network that has forgotten its backdoor learns nothing from so few. The attack success rate
    before is O-ASR, the one after it P-ASR. What a network that never had a backdoor learns from
    the same images, in the same order, is the control.

    Args:
        poisoned_images: Poisoned training images among the others, 1 or more; no more than there
            are.
        share: Of the training images that are tuned on, above 0, at most 1.
        epochs: Passes over them, 1 or more.
        lr: Of SGD with momentum 0.9 at a constant rate, above 0.
        batch_size: Images per step, 2 or more.
        control: Retune a network that was never backdoored as well.

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

    def mixture(self, subject: Subject, generator: torch.Generator) -> LabelledImages:
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
