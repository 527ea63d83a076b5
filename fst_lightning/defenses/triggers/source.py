"""The base class of all sources of triggers, and how a mini-batch passes through several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fst_lightning.argument_repr import ShowsArguments
from fst_lightning.defenses.common.clean_data import LabeledImages
from fst_lightning.defenses.common.found_buffers import FoundBuffers
from fst_lightning.defenses.common.whole_set import keep_modes, seeded
from fst_lightning.models import logits_taken
from fst_lightning.seeds import derived_seed
from fst_lightning.validate import check_number

Classifier = Callable[[Tensor], Tensor]
"""From images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``."""


class TriggerSource(ShowsArguments, FoundBuffers):
    """Puts triggers on clean images while a network is tuned; the images keep their labels.

    *How it works.* A network that is tuned on images with a trigger and their true labels learns to
    ignore that trigger and its likes. A source says which triggers: random ones, or those that it
    finds in the network. A subclass overrides :meth:`trigger`, and :meth:`study` if it looks at the
    network before it is changed. What it finds there it keeps in buffers.

    Args:
        share: Share of the images of each mini-batch that get a trigger, in [0, 1].

    Raises:
        ValueError: If the share is outside [0, 1].
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        check_number("share", share, high=1)
        self.share = share

    @property
    def ready(self) -> bool:
        """Whether the source needs no (further) :meth:`study`; True unless overridden."""
        return True

    def study(self, net: nn.Module, clean: LabeledImages, generator: torch.Generator) -> None:
        """Find triggers in the network that is to be purified.

        Args:
            net: The network before the purification, in evaluation mode; it stays as it is.
            clean: The clean images, on the device of the network.
            generator: A CPU generator; global random numbers are seeded.
        """

    def trigger(self, images: Tensor, labels: Tensor, classify: Classifier) -> Tensor:
        """Put a trigger on every image.

        Args:
            images: ``(N, C, H, W)``, float in [0, 1].
            labels: ``(N,)`` int64, or probabilities ``(N, K)``.
            classify: The network as it is now.

        Returns:
            Images of the same shape, in [0, 1].
        """
        raise NotImplementedError

    def forward(self, images: Tensor, labels: Tensor, classify: Classifier) -> Tensor:
        """Put a trigger on a share of the images, drawn at random; arguments as above."""
        count = round(self.share * len(images))
        if count == 0:
            return images
        if count == len(images):
            return self.trigger(images, labels, classify).to(images.dtype)
        rows = torch.randperm(len(images), device=images.device)[:count]
        triggered = self.trigger(images[rows], labels[rows], classify)
        return images.index_copy(0, rows, triggered.to(images.dtype))

    def findings(self) -> dict[str, Any]:
        """What :meth:`study` found, as plain values for ``results.json``."""
        return {}


class TriggerSources(nn.ModuleList):
    """A list of sources, whose buffers move and are saved with the module that holds it."""

    def __iter__(self) -> Iterator[TriggerSource]:
        """The sources in their order."""
        return super().__iter__()  # type: ignore[return-value]


def put_triggers(
    sources: Iterable[TriggerSource], images: Tensor, labels: Tensor, classify: Classifier
) -> Tensor:
    """Pass a mini-batch through several sources in their order; each draws its own images.

    Args:
        sources: The trigger sources.
        images: ``(N, C, H, W)``, float in [0, 1].
        labels: ``(N,)`` int64, or probabilities ``(N, K)``.
        classify: The network as it is now.
    """
    for source in sources:
        images = source(images, labels, classify)
    return images


def study_sources(
    sources: Iterable[TriggerSource], net: nn.Module, clean: LabeledImages, seed: int
) -> None:
    """Let the sources that are not ready study a network; it stays as it is.

    Args:
        sources: The trigger sources; those that are ready already are left alone.
        net: The network before the purification, on the device of the images.
        clean: The clean images.
        seed: Of all random numbers; each source has its own stream.
    """
    for source in sources:
        if not source.ready:
            source.to(clean.device)
            generator = torch.Generator().manual_seed(derived_seed(seed, type(source).__name__))
            with keep_modes(net), logits_taken(net), seeded(generator, clean.device):
                net.eval()
                source.study(net, clean, generator)
