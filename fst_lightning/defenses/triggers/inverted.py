"""Triggers of a generator that is recovered from the network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fst_lightning.defenses.common.clean_data import LabeledImages
from fst_lightning.defenses.common.trigger_generator import InvertingDefense
from fst_lightning.defenses.triggers.source import Classifier, TriggerSource


class InvertedTriggers(TriggerSource):
    r"""Put the trigger of a recovered generator on images.

    *How it works.* Before the purification, a small generator learns to change images so that the
    features which the clean task does not need change most
    (:class:`~fst_lightning.defenses.common.trigger_generator.InvertingDefense`). In a backdoored
    network these are the features of the trigger, and most of the changed images go to the target
    class. The generator is recovered once, in the network that is to be purified.

    Args:
        share: Share of the images of each mini-batch that get the trigger, in [0, 1].
        mask_steps: Steps of Adam for the mask on the features, 1 or more.
        generator_epochs: Passes over the clean images for the generator, 1 or more.
        generator_lr: Learning rate of Adam for the generator, greater than 0.
        generator_width: Channels of the generator at half of the resolution, 1 or more.
        batch_size: Images per step of the generator, 2 or more.
        image_bound: Largest mean squared change of a pixel, in units of [0, 1], greater than 0.
        feature_bound: Largest change of benign features, relative to all features, greater than 0.
        head: Dotted name of the linear head; None finds it.

    Shape:
        Images ``(N, C, H, W)`` float in [0, 1].

    Raises:
        ValueError: If an argument is out of its range.

    Note:
        One generator is learned for all classes, so it covers the triggers of an all-to-all attack
        only in part. A backdoor that it does not find is not unlearned.

    Example:
        >>> source = InvertedTriggers(share=0.5)
        >>> source.ready
        False

    References:
        Xu, Huang, Li, Wang, Hu, Cui and Liu, "Towards reliable and efficient backdoor trigger
        inversion via decoupling benign features", ICLR 2024.

    See Also:
        - :class:`~fst_lightning.defenses.BTIDBF`: the defense that the generator comes from.
        - :class:`~fst_lightning.defenses.triggers.RandomTriggers`: triggers that need no network.
    """

    def __init__(
        self,
        share: float = 0.5,
        mask_steps: int = 20,
        generator_epochs: int = 5,
        generator_lr: float = 2e-3,
        generator_width: int = 16,
        batch_size: int = 32,
        image_bound: float = 0.005,
        feature_bound: float = 3.0,
        head: str | None = None,
    ) -> None:
        super().__init__(share)
        self.inversion = InvertingDefense(
            mask_steps=mask_steps,
            generator_epochs=generator_epochs,
            generator_lr=generator_lr,
            generator_width=generator_width,
            batch_size=batch_size,
            image_bound=image_bound,
            feature_bound=feature_bound,
            head=head,
        )

    @property
    def ready(self) -> bool:
        """Whether a generator was recovered."""
        return len(self.inversion.generator_weights) > 0

    def study(self, net: nn.Module, clean: LabeledImages, generator: torch.Generator) -> None:
        """Recover the generator."""
        self.inversion.prepare(net, generator)
        try:
            self.inversion.invert(net, clean, generator)
        finally:
            self.inversion.finish()

    def trigger(self, images: Tensor, labels: Tensor, classify: Classifier) -> Tensor:
        """Put the recovered trigger on every image."""
        return self.inversion.triggered_pixels(images)

    def findings(self) -> dict[str, Any]:
        """The class that most triggered images went to, and their share."""
        return self.inversion.findings()
