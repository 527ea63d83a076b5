"""SGD with lookahead."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class LookaheadSGD(torch.optim.SGD):
    r"""SGD whose weights are pulled back to their own moving average every few steps.

    Every ``every`` steps :math:`\bar\theta \leftarrow \bar\theta + (1 - d)(\theta - \bar\theta)`,
    :math:`\theta \leftarrow \bar\theta`, with :math:`d = d_0 (t / T)^3`; after the last step
    :math:`d = 1`, which keeps the average.

    Args:
        params: The parameters to train.
        total_steps: Steps :math:`T` of the training.
        decay: Decay :math:`d_0`, in [0, 1].
        every: Steps between two pulls, 1 or more.
        options: Options of ``torch.optim.SGD``.

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
        """Take a step of SGD, and pull the weights back if it is due."""
        loss = super().step(closure)
        trained = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if trained:
            self._pull(trained)
        return loss

    @torch.no_grad()
    def _pull(self, trained: list[Tensor]) -> None:
        # Stored with the parameters like momentum, so that checkpoints contain it.
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
