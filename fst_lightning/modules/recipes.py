"""Parts of training recipes that no library has: a learning-rate triangle, and lookahead."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
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

    Args:
        optimizer: whose rates are full.
        total_steps: of the training, 1 or more.
        start: share of the rate in the first step.
        peak: share of the steps after which it is full, in (0, 1).
        end: share of the rate after the last step.

    Example:
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


class LookaheadSGD(torch.optim.SGD):
    r"""SGD whose weights are pulled back to their own moving average every few steps.

    Every ``every`` steps :math:`\bar\theta \leftarrow \bar\theta + (1 - d)(\theta - \bar\theta)`,
    :math:`\theta \leftarrow \bar\theta`, with :math:`d = d_0 (t / T)^3`; after the last step
    :math:`d = 1`, which keeps the average.

    Args:
        params: what to train.
        total_steps: :math:`T`, of the training.
        decay: :math:`d_0`, in [0, 1].
        every: steps between two pulls, 1 or more.
        options: of ``torch.optim.SGD``.

    Source: Jordan, 2024, arXiv 2404.00498, after Zhang et al., 2019, arXiv 1907.08610.
    """

    def __init__(
        self,
        params: Iterable[Any],
        total_steps: int,
        decay: float = 0.95**5,
        every: int = 5,
        **options: Any,
    ) -> None:
        super().__init__(params, **options)
        self.total_steps = total_steps
        self.decay = decay
        self.every = every

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step of SGD, and pull the weights back where it is time."""
        loss = super().step(closure)
        trained = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if trained:
            self._pull(trained)
        return loss

    @torch.no_grad()
    def _pull(self, trained: list[Tensor]) -> None:
        # Kept with the parameters, as momentum is, so that it is in checkpoints.
        count = int(self.state[trained[0]].get("steps", 0)) + 1
        last = count == self.total_steps
        share = 0.0 if last else 1 - self.decay * (count / self.total_steps) ** 3
        for parameter in trained:
            state = self.state[parameter]
            if "average" not in state:
                state["average"] = parameter.detach().clone()
            state["steps"] = count
            if count % self.every == 0 or last:
                state["average"].lerp_(parameter, share)
                parameter.copy_(state["average"])
