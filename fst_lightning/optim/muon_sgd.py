"""Muon for the filters of convolutions, SGD for everything else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from fst_lightning.validate import check_number


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
        check_number("filter_lr", filter_lr, low_open=True)
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
