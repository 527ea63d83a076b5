"""The interface of attacks whose trigger is learned together with the classifier."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fst_lightning.attacks.common.attack import Attack


class TrainedAttack(Attack):
    """An attack with its own networks and optimizer, trained in the classifier's steps.

    Its networks are submodules. Only the value of :meth:`~fst_lightning.attacks.Attack.loss` is
    differentiated, so that it must give the attack's parameters their gradient too. After the
    classifier's step, the optimizer of the attack takes one.
    """

    eight_bit: ClassVar[bool] = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._optimizer: Optimizer | None = None
        self._saved: dict[str, Any] | None = None

    @property
    def ready(self) -> bool:
        """Whether the learned part was loaded, or is being learned."""
        learns = any(True for _ in self.parameters())
        return self.fitted or (super().ready and not (learns and self._optimizer is None))

    @abstractmethod
    def own_optimizer(self) -> Optimizer:
        """Build the optimizer of the attack's parameters."""

    def attach(self, net: nn.Module) -> None:
        """Build the optimizer, and restore its state in a resumed run."""
        self._optimizer = self.own_optimizer()
        if self._saved:
            self._optimizer.load_state_dict(self._saved)

    def after_step(self) -> None:
        """Step the attack's optimizer, on gradients averaged over all processes."""
        optimizer = self._optimizer
        if optimizer is None:
            raise RuntimeError("Expected `attach` to be called before the first step.")
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        average_gradients(parameters)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def get_extra_state(self) -> dict[str, Any]:
        """The optimizer's state, for checkpoints."""
        return {} if self._optimizer is None else self._optimizer.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the optimizer's state from a checkpoint."""
        self._saved = state
        if self._optimizer is not None and state:
            self._optimizer.load_state_dict(state)


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Average gradients over the processes of a distributed run; otherwise keep them."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    for parameter in parameters:
        if parameter.requires_grad:
            # A process without poisoned rows has no gradient, but must take part in the average.
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            distributed.all_reduce(parameter.grad)
            parameter.grad /= distributed.get_world_size()
