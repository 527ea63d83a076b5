"""Which classes stand out by what it takes to reach them."""

from __future__ import annotations

import torch
from torch import Tensor


def outstanding_classes(sizes: Tensor, ratio: float) -> Tensor:
    r"""Find the classes that a much smaller trigger leads to than to the others.

    Class k stands out if :math:`s_k < c \cdot \mathrm{median}_{j \ne k}\, s_j`. A ratio of medians
    asks for a large difference; an anomaly index asks for one that is large beside the spread, and
    a few classes that happen to be alike make it large.

    Args:
        sizes: :math:`s`, ``(K,)``, 0 or more; infinite for a class that was not reached.
        ratio: :math:`c`, in (0, 1).

    Returns:
        The classes, ``(n,)`` int64, in order; none if there is only one class.

    Example:
        >>> outstanding_classes(torch.tensor([9.0, 10.0, 2.0, 11.0]), ratio=0.6).tolist()
        [2]
    """
    count = len(sizes)
    if count < 2:
        return sizes.new_zeros(0, dtype=torch.int64)
    ordered = sizes.sort().values
    # Without class k, the (lower) median is the next size if class k is one of those up to it.
    middle = (count - 2) // 2
    medians = torch.where(sizes <= ordered[middle], ordered[middle + 1], ordered[middle])
    return (sizes < ratio * medians).nonzero()[:, 0]
