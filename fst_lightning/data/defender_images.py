"""Selects the clean images of the defender."""

from __future__ import annotations

import copy
import dataclasses
from typing import Literal

import torch
from torch import Tensor

from fst_lightning.attacks import draw_balanced_rows, draw_rows
from fst_lightning.data.images import ImageSet
from fst_lightning.data.sources.source import Source
from fst_lightning.seeds import derived_seed

CleanSource = Literal["train", "heldout"]
"""``train``: drawn from the images that the backdoored model was trained on, before they were
poisoned, as the papers do. ``heldout``: taken out of the training set before the attack, so that
the backdoored model has never seen them."""


def clean_rows(
    labels: Tensor,
    ratio: float,
    seed: int,
    balanced: bool = False,
    changed: Tensor | None = None,
) -> Tensor:
    """Draw the rows of the defender: uniformly, as published, or balanced over classes.

    Args:
        labels: ``(N,)`` of the training set.
        ratio: Share of the training set, 0 to 1.
        seed: Seed of the draw.
        balanced: Whether to draw equally many rows of each class, up to one; a smaller class gives
            all of its rows, and the others make up for it.
        changed: ``(N,)`` bool, rows that an attack is known to have changed. They are never drawn,
            and the ratio is a share of the others.

    Returns:
        ``(N,)`` bool.

    Raises:
        ValueError: If the ratio rounds to no image.

    Example:
        >>> labels = torch.tensor([0] * 90 + [1] * 10)
        >>> labels[clean_rows(labels, 0.1, seed=0, balanced=True)].bincount().tolist()
        [5, 5]
    """
    if changed is not None:
        held = torch.zeros_like(changed)
        held[~changed] = clean_rows(labels[~changed], ratio, seed, balanced)
        return held
    count = round(ratio * len(labels))
    if count == 0:
        raise ValueError(
            f"Expected `tuning.clean_ratio` to leave at least one of {len(labels)} training images "
            f"to tune on, but {ratio} rounds to none; tuning.clean_ratio=1 uses them all."
        )
    if not balanced:
        everything = torch.ones(len(labels), dtype=torch.bool)
        return draw_rows(everything, count, derived_seed(seed, "clean"))
    generator = torch.Generator().manual_seed(derived_seed(seed, "clean"))
    return draw_balanced_rows(labels, count, generator)


def with_training_images(source: Source, images: ImageSet, changed: Tensor | None = None) -> Source:
    """The same source with other training images; normalized as before, and unchanged itself."""
    other = copy.copy(source)
    other._data = dataclasses.replace(source.load(), train=images, changed=changed)
    return other


def reserve(source: Source, rows: Tensor) -> tuple[Source, ImageSet]:
    """Remove rows from the training set before it is used.

    Args:
        source: The source, unchanged.
        rows: ``(N,)`` bool.

    Returns:
        The source without these rows, and the rows.

    Raises:
        ValueError: If no row would be left.
    """
    train, changed = source.load().train, source.load().changed
    if bool(rows.all()):
        raise ValueError(
            "Expected `tuning.clean_ratio` below 1 with tuning.clean_source=heldout, which takes "
            "the defender's images out of the training set, but nothing would be left to train on."
        )
    kept, taken = (~rows).nonzero()[:, 0], rows.nonzero()[:, 0]
    rest = None if changed is None else changed[kept]
    return with_training_images(source, train.subset(kept), rest), train.subset(taken)
