"""The published algorithm as a loop of plain PyTorch, to compare callbacks and modules with."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from tests.callbacks.projects import MakeOptimizer


def plain_fst(
    net: nn.Module,
    head: str,
    batches: Iterable[tuple[Tensor, Tensor]],
    make_optimizer: MakeOptimizer,
    *,
    alpha: float,
    seed: int,
    epochs: int = 1,
    original: Tensor | None = None,
) -> nn.Module:
    """Tune a copy of a network: uniform re-initialization, penalty, projection.

    Args:
        net: stays as it is.
        head: dotted name of the head.
        batches: the same in every epoch.
        make_optimizer: makes the optimizer from the parameters.
        alpha: weight of the penalty.
        seed: of the new head.
        epochs: passes over the batches.
        original: the reference head; None takes the network's own.
    """
    net = copy.deepcopy(net).train()
    linear = net.get_submodule(head)
    weight, bias = linear.get_parameter("weight"), linear.get_parameter("bias")
    reference = weight.detach().clone() if original is None else original
    bound, generator = 1 / math.sqrt(weight.shape[1]), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (weight, bias):
            drawn = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
            parameter.copy_(drawn)
    return steps(net, weight, batches, make_optimizer(net.parameters()), reference, alpha, epochs)


def steps(
    net: nn.Module,
    weight: nn.Parameter,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: Optimizer,
    reference: Tensor,
    alpha: float,
    epochs: int,
) -> nn.Module:
    """The steps alone, on a head that is re-initialized already."""
    for _ in range(epochs):
        for images, labels in batches:
            loss = functional.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            torch.autograd.backward(loss + alpha * (weight * reference).sum())
            optimizer.step()
            with torch.no_grad():
                weight.mul_(reference.norm() / weight.norm())
    return net
