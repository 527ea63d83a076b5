"""Two networks between which a backdoor was learned, and what an attacker has."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fst_lightning.defenses.common.clean_data import LabeledImages
from fst_lightning.robustness import Subject
from tests.defenses.delivered import CLASSES, delivered, trained


def stamp(images: Tensor) -> Tensor:
    """A bright corner, as in the delivered rows."""
    stamped = images.clone()
    stamped[:, :, :3, :3] = 255
    return stamped


def subject(
    backdoored: nn.Module | None = None,
    purified: nn.Module | None = None,
    make_clean: Callable[[], nn.Module] | None = None,
) -> Subject:
    """A subject whose backdoored network has learned the corner; its purified one is the same."""
    data, truth = delivered()
    honest, _ = delivered(poisoned=0)
    if backdoored is None:
        backdoored = trained(data)
    others = honest.labels != 0
    train = LabeledImages(honest.images, honest.labels, data.mean, data.std)
    triggered = LabeledImages(
        stamp(honest.images[others]), honest.labels[others], data.mean, data.std
    )
    return Subject(
        backdoored=backdoored,
        purified=copy.deepcopy(backdoored) if purified is None else purified,
        train=train,
        poisoned=LabeledImages(data.images[truth], data.labels[truth], data.mean, data.std),
        stamp=stamp,
        test=train,
        triggered=triggered,
        wanted=lambda logits, labels: torch.zeros_like(labels),
        make_clean=make_clean or (lambda: trained(honest)),
    )


__all__ = ["CLASSES", "stamp", "subject"]
