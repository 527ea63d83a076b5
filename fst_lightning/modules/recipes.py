"""A learning-rate triangle, lookahead SGD and Muon, which no library offers in this form."""

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
        optimizer: The optimizer with the full learning rates.
        total_steps: Steps of the training, 1 or more.
        start: Share of the full rate in the first step.
        peak: Share of the steps after which the rate is full, in (0, 1).
        end: Share of the full rate after the last step.

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


class MuonSGD(torch.optim.SGD):
    r"""Convolution filters by Muon, everything else by SGD.

    A layer's filters as a matrix :math:`W` of n rows, one per output channel, and gradient
    :math:`G`: :math:`M \leftarrow \mu M + G`, then

    .. math:: W \leftarrow \sqrt n \, W / \|W\|_F
        - \eta \, \mathrm{orthogonalised}(G + \mu M)

    so that all directions of the momentum count alike, and the size of a step depends only on the
    learning rate. Filters have no weight decay: their norm is fixed, which does not matter if
    BatchNorm follows them.

    Args:
        params: The parameters to train.
        filter_lr: Learning rate :math:`\eta` of filters, greater than 0; schedules change it like
            ``lr``.
        filter_momentum: Momentum :math:`\mu` of filters, in [0, 1).
        options: Options of ``torch.optim.SGD`` for the other parameters.

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024.
    ``torch.optim.Muon`` does not accept tensors of four dimensions.
    """

    def __init__(
        self,
        params: Iterable[Any],
        filter_lr: float = 0.17,
        filter_momentum: float = 0.6,
        **options: Any,
    ) -> None:
        if filter_lr <= 0:
            raise ValueError(f"Invalid learning rate of filters: {filter_lr}")
        super().__init__(params, **options)
        self.filter_lr = filter_lr
        self.filter_momentum = filter_momentum

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step of Muon on the filters, and one of SGD on the rest."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        filters: list[tuple[Tensor, Tensor]] = []
        for group in self.param_groups:
            # A schedule stores the initial rate and changes the current one.
            full = group.get("initial_lr")
            rate = self.filter_lr * (group["lr"] / full if full else 1.0)
            for parameter in group["params"]:
                gradient = parameter.grad
                if parameter.ndim == 4 and gradient is not None:
                    self._follow(parameter, gradient, rate)
                    filters.append((parameter, gradient))
                    parameter.grad = None  # so that SGD does not train them a second time
        super().step()
        for parameter, gradient in filters:
            parameter.grad = gradient
        return loss

    @torch.no_grad()
    def _follow(self, filters: Tensor, gradient: Tensor, rate: float) -> None:
        state = self.state[filters]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum = state["momentum_buffer"].mul_(self.filter_momentum).add_(gradient)
        direction = gradient.add(momentum, alpha=self.filter_momentum)
        filters.mul_(len(filters) ** 0.5 / filters.norm())
        filters.add_(orthogonalised(direction.flatten(1)).view_as(filters), alpha=-rate)


def orthogonalised(matrix: Tensor, iterations: int = 3) -> Tensor:
    r"""The matrix with its singular values drawn towards 1, in bfloat16 arithmetic.

    :math:`X \leftarrow a X + b (X X^T) X + c (X X^T)^2 X` from :math:`X = G / \|G\|_F` on, with
    (a, b, c) = (3.4445, -4.7750, 2.0315): the same odd polynomial of every singular value. Three
    times lift all from 0.03 on above 0.6, and none above 1.3.

    Args:
        matrix: ``(n, m)``.
        iterations: Of the polynomial, 0 or more.

    Example:
        >>> singular = torch.linalg.svdvals(orthogonalised(torch.diag(torch.tensor([3.0, 1.0]))))
        >>> bool((singular > 0.6).all() and (singular < 1.3).all())
        True
    """
    tall = len(matrix) > matrix.shape[1]
    result: Tensor = (matrix.T if tall else matrix).bfloat16()
    result = result / (result.norm() + 1e-7)
    for _ in range(iterations):
        square = result @ result.T
        result = 3.4445 * result + (-4.7750 * square + 2.0315 * square @ square) @ result
    return (result.T if tall else result).to(matrix.dtype)
