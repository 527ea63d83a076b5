"""What the attacks share whose trigger is learned along with the classifier."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fst_lightning.attacks.common.attack import Attack


class TrainedAttack(Attack):
    """An attack with networks and an optimizer of its own, trained in the classifier's steps.

    Its networks are submodules. The value of :meth:`~fst_lightning.attacks.Attack.loss` is the only
    thing that is differentiated: it has to give the attacker's parameters the gradient that they
    want as well. After the classifier's step the attack's own optimizer takes one.
    """

    eight_bit: ClassVar[bool] = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._optimizer: Optimizer | None = None
        self._saved: dict[str, Any] | None = None

    @property
    def ready(self) -> bool:
        """Whether what is learned was loaded, or is being learned."""
        learns = any(True for _ in self.parameters())
        return self.fitted or (super().ready and not (learns and self._optimizer is None))

    @abstractmethod
    def own_optimizer(self) -> Optimizer:
        """Make the optimizer of the attack's parameters."""

    def attach(self, net: nn.Module) -> None:
        """Make the optimizer, as it was left where a run is resumed."""
        self._optimizer = self.own_optimizer()
        if self._saved:
            self._optimizer.load_state_dict(self._saved)

    def after_step(self) -> None:
        """Take a step of the attack's own, on gradients averaged over all processes."""
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
        """Take the optimizer's state from a checkpoint."""
        self._saved = state
        if self._optimizer is not None and state:
            self._optimizer.load_state_dict(state)


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Average gradients over the processes of a distributed run; otherwise leave them alone."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    for parameter in parameters:
        if parameter.requires_grad:
            # A process whose batch holds no poisoned row has no gradient, and still has to answer.
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            distributed.all_reduce(parameter.grad)
            parameter.grad /= distributed.get_world_size()
