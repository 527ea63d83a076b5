"""The rows of a training set that an attacker changes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PoisonPlan:
    """The rows of the training set that carry the trigger, and those that only look like it.

    A plan depends only on the labels, the ratio and the seed: it is the same for any number of
    workers, processes or devices.

    Attributes:
        poisoned: ``(N,)`` bool; rows with the trigger and the attacker's label.
        cover: ``(N,)`` bool; rows that the attacker changes, but that keep their true label.
    """

    poisoned: Tensor
    cover: Tensor

    def __post_init__(self) -> None:
        if bool((self.poisoned & self.cover).any()):
            raise ValueError("Expected no row to be both poisoned and cover.")

    @property
    def num_poisoned(self) -> int:
        """The number of rows with the trigger."""
        return int(self.poisoned.sum())

    @staticmethod
    def nothing(num_rows: int) -> PoisonPlan:
        """The plan that changes no row."""
        rows = torch.zeros(num_rows, dtype=torch.bool)
        return PoisonPlan(poisoned=rows, cover=rows.clone())


def draw_rows(candidates: Tensor, count: int, seed: int) -> Tensor:
    """Draw ``count`` of the candidate rows, without replacement.

    Args:
        candidates: ``(N,)`` bool, the rows to draw from.
        count: Number of rows, at most the number of candidates.
        seed: The same seed gives the same rows on each machine.

    Returns:
        ``(N,)`` bool with exactly ``count`` rows set.

    Raises:
        ValueError: If there are fewer candidates than ``count``.

    Example:
        >>> int(draw_rows(torch.ones(100, dtype=torch.bool), count=5, seed=0).sum())
        5
    """
    rows = candidates.nonzero().flatten()
    if count > len(rows):
        raise ValueError(f"Expected at most {len(rows)} rows to be drawn, but got {count}.")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    drawn = torch.zeros_like(candidates)
    drawn[rows[order[:count]]] = True
    return drawn


def draw_balanced_rows(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw rows without replacement, equally many of each class, up to one.

    A class that is too small gives all of its rows, and the others make up for it. The order of the
    rows does not matter: images of a folder come class by class.

    Args:
        labels: ``(N,)`` int64.
        count: Number of rows; N or more draws all of them.
        generator: A CPU generator.

    Returns:
        ``(N,)`` bool.

    Example:
        >>> labels = torch.tensor([0] * 90 + [1] * 10)
        >>> rows = draw_balanced_rows(labels, 10, torch.Generator().manual_seed(0))
        >>> labels[rows].bincount().tolist()
        [5, 5]
    """
    order = torch.randperm(len(labels), generator=generator)
    # The first image of each class, then the second of each class, and so on: the first rows of
    # this order are a balanced draw for classes of any sizes.
    turn = torch.empty_like(order)
    shuffled = labels[order]
    for label in range(int(labels.max()) + 1):
        of_class = (shuffled == label).nonzero()[:, 0]
        turn[of_class] = torch.arange(len(of_class))
    drawn = torch.zeros(len(labels), dtype=torch.bool)
    drawn[order[turn.argsort(stable=True)[:count]]] = True
    return drawn
