"""Split a data set, class by class."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fst_lightning.validate import check_number

# Keeps 0.1 * 30 from counting as a little more than 3.
_ROUNDING = 1e-9


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Hold out the same share of each class.

    `ceil(fraction * N)` rows are held out, shared among the classes in proportion by largest
    remainder. A class of two or more rows keeps at least one on each side, even if that changes the
    total; a class of one row keeps it.

    Args:
        labels: Int64 of shape (N,), each at least 0.
        fraction: Share to hold out, in (0, 1).
        seed: The same seed gives the same rows.

    Returns:
        The rows kept and the rows held out, both ascending.

    Raises:
        ValueError: If `fraction` is not in (0, 1).

    Example:
        >>> kept, held_out = stratified_split(torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), 0.25, seed=0)
        >>> sorted((held_out // 4).tolist()), len(kept)
        ([0, 1], 6)
    """
    check_number("fraction", fraction, low_open=True, high=1, high_open=True)
    counts = torch.bincount(labels)
    shares = counts.double() * fraction
    taken = (shares + _ROUNDING).floor().long()
    missing = math.ceil(len(labels) * fraction - _ROUNDING) - int(taken.sum())
    by_remainder = (shares - taken).argsort(descending=True, stable=True)
    taken[by_remainder[: max(missing, 0)]] += 1
    taken = torch.where(counts < 2, 0, torch.minimum(taken, counts - 1).clamp(min=1))

    generator = torch.Generator().manual_seed(seed)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label, number in enumerate(taken.tolist()):
        rows = (labels == label).nonzero().flatten()
        held_out[rows[torch.randperm(len(rows), generator=generator)[:number]]] = True
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()
