r"""Logits of networks that end in a softmax.

Cross-entropy takes logits. On probabilities its gradient almost vanishes, and a defense that tunes
with it destroys the network. The logarithms of probabilities are logits: their softmax gives the
probabilities.
"""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fst_lightning.models.outputs import logits_of

Outputs = Literal["logits", "probabilities", "log_probabilities"]

PROBABILITIES = (
    "The network ends in a softmax: the logarithm of its probabilities is used as logits. The "
    "network itself stays as it is."
)
"""The warning for a network that returns probabilities."""

_TOLERANCE = 1e-4
_LOGARITHM: dict[Callable[..., Any], Callable[..., Tensor]] = {
    functional.softmax: functional.log_softmax,
    torch.softmax: torch.log_softmax,
    Tensor.softmax: Tensor.log_softmax,
    torch.special.softmax: torch.special.log_softmax,
}
"""Softmax functions, and the function that computes the logarithm from the same arguments."""


def kind_of_outputs(outputs: object) -> Outputs:
    """Tell logits from probabilities and their logarithms.

    Probabilities are rows of non-negative numbers that sum to 1; of their logarithms the
    exponentials do.

    Args:
        outputs: What a network returned, ``(N, C)``; anything else counts as logits.

    Example:
        >>> kind_of_outputs(torch.tensor([[0.25, 0.75]])), kind_of_outputs(torch.eye(2) * 3)
        ('probabilities', 'logits')
    """
    if not isinstance(outputs, Tensor) or outputs.dim() != 2 or outputs.shape[1] < 2:
        return "logits"
    if not (len(outputs) and outputs.is_floating_point()):
        return "logits"
    tolerance = max(_TOLERANCE, 4 * torch.finfo(outputs.dtype).eps)
    values = outputs.detach().double()
    if bool((values >= 0).all()) and _sum_to_one(values, tolerance):
        return "probabilities"
    if bool((values <= 0).all()) and _sum_to_one(values.exp(), tolerance):
        return "log_probabilities"
    return "logits"


def take_logits(net: nn.Module, *, warn: bool = True) -> None:
    """Make a network return logits, whatever it returns now.

    Logits in a dictionary or an object are taken out, see :func:`~fst_lightning.models.logits_of`.
    If the network turns out to return probabilities, then ``net(images)`` is their logarithm from
    then on, and in copies of the network; it is computed from the input of the softmax, so that
    nothing underflows. The first output in each mode decides, because some networks leave the
    softmax out in training mode. The weights, their names and the class stay as they are, and
    :func:`return_as_before` undoes it. A network that returns the logarithms already stays as it
    is: they are logits.

    Args:
        net: The network.
        warn: Whether to warn once if it returns probabilities.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(3, 2), nn.Softmax(dim=1))
        >>> images = torch.rand(4, 3, 1, 1)
        >>> before = net(images)
        >>> take_logits(net, warn=False)
        >>> torch.allclose(net(images), before.log()), list(net.state_dict())
        (True, ['1.weight', '1.bias'])
        >>> return_as_before(net)
        >>> torch.equal(net(images), before)
        True
    """
    if not takes_logits(net):
        net.__dict__["_forward_before"] = net.__dict__.get("forward")
        # A bound method, which a copy of the network binds to the copy.
        net.__dict__["forward"] = types.MethodType(_with_logits(warn), net)


def return_as_before(net: nn.Module) -> None:
    """Let a network return what its class returns: undo :func:`take_logits`.

    Args:
        net: The network, or a copy of it.
    """
    if takes_logits(net):
        before = net.__dict__.pop("_forward_before")
        del net.__dict__["forward"]
        if before is not None:
            net.__dict__["forward"] = before


def takes_logits(net: nn.Module) -> bool:
    """Whether :func:`take_logits` is active for this network."""
    return "_forward_before" in net.__dict__


@contextmanager
def logits_taken(net: nn.Module) -> Iterator[None]:
    """Make a network return logits while the context lasts."""
    before = takes_logits(net)
    take_logits(net)
    try:
        yield
    finally:
        if not before:
            return_as_before(net)


def _with_logits(warn: bool) -> Callable[..., Any]:
    """A ``forward`` that returns logits."""
    found: dict[bool, Outputs] = {}  # by mode; shared by the copies of a network

    def forward(net: nn.Module, *arguments: Any, **keywords: Any) -> Any:
        before: Callable[..., Any] = net.__dict__["_forward_before"] or types.MethodType(
            type(net).forward, net
        )
        mode = net.training
        if found.get(mode, "probabilities") != "probabilities":
            return _alone(before(*arguments, **keywords))
        with _LastSoftmax() as last:
            outputs = _alone(before(*arguments, **keywords))
        if mode not in found:
            found[mode] = kind_of_outputs(outputs)
            if found[mode] != "probabilities":
                return outputs
            if warn and found.get(not mode) != "probabilities":
                warnings.warn(PROBABILITIES, stacklevel=2)
        return last.logits(outputs)

    return forward


class _LastSoftmax(TorchFunctionMode):
    """Remembers the last softmax of a forward pass, because attention layers have others."""

    def __init__(self) -> None:
        super().__init__()
        self._call: tuple[Any, Callable[[], Tensor]] | None = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        keywords = kwargs or {}
        result = func(*args, **keywords)
        logarithm = _LOGARITHM.get(func)
        if logarithm is not None:
            self._call = result, lambda: logarithm(*args, **keywords)
        return result

    def logits(self, outputs: Tensor) -> Tensor:
        """The logarithm of the outputs; exact if they are what the last softmax returned."""
        if self._call is not None and self._call[0] is outputs:
            return self._call[1]()
        return outputs.clamp_min(torch.finfo(outputs.dtype).tiny).log()


def _alone(outputs: Any) -> Tensor:
    """The logits in a network's output; a tensor of any shape is returned unchanged."""
    return outputs if isinstance(outputs, Tensor) else logits_of(outputs)


def _sum_to_one(rows: Tensor, tolerance: float) -> bool:
    return bool(((rows.sum(1) - 1).abs() <= tolerance).all())
