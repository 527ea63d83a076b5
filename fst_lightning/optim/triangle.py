"""A learning-rate schedule: up in a line, then down in a line."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def triangle(
    optimizer: Optimizer,
    total_steps: int,
    start: float = 0.2,
    peak: float = 0.23,
    end: float = 0.07,
) -> LambdaLR:
    r"""Raise the learning rate linearly to its full value, then lower it linearly.

    ``OneCycleLR`` of torch is not the same: it reaches the full rate one step earlier, and its
    lowest rate in the last step, not after it; and it takes no ``peak`` of 0.

    Args:
        optimizer: The optimizer with the full learning rates.
        total_steps: Steps of the training, 1 or more.
        start: Share of the full rate in the first step.
        peak: Share of the steps after which the rate is full, in [0, 1). With 0 it only
            falls.
        end: Share of the full rate after the last step.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        >>> schedule = triangle(optimizer, total_steps=100, peak=0.5)
        >>> schedule.get_last_lr()
        [0.2]
    """

    def rate(step: int) -> float:
        done = step / max(1, total_steps)
        if done < peak:
            return start + (1 - start) * done / peak
        return 1 + (end - 1) * min(1.0, (done - peak) / (1 - peak))

    return LambdaLR(optimizer, rate)
