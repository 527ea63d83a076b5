"""Mode connectivity repair (MCR): a point between the backdoored and a tuned network.

Example:
    ``python purify.py attack=badnets defense=mcr defense.curve_t=0.3``
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.defenses.common.clean_data import CleanData
from fst_lightning.defenses.common.defense import Defense
from fst_lightning.defenses.common.snapshot import flat
from fst_lightning.defenses.common.whole_set import recompute_batchnorm, tune
from fst_lightning.validate import check_number


class ModeConnectivityRepair(Defense):
    r"""Train a curve of low loss between two networks, and take a point on it.

    *How it works.* Two trained networks are often connected by a curve of weights along which the
    loss on clean images stays low. The backdoor, however, works only near the backdoored end. The
    defense fine-tunes a copy of the network for the other end, trains the middle of the curve on
    clean images, and takes the weights of a point on the curve. BatchNorm statistics are recomputed
    for that point.

    .. math:: \phi(t) = (1 - t)^2 w_0 + 2 t (1 - t) \theta + t^2 w_1, \qquad
        \min_\theta \mathbb{E}_{t \sim U(0, 1)}\, \mathrm{CE}(f_{\phi(t)}(x), y)

    with the backdoored weights :math:`w_0`, the fine-tuned ones :math:`w_1`, the middle
    :math:`\theta` of the Bezier curve :math:`\phi`, which starts halfway between the two, and clean
    images :math:`x` with labels :math:`y`. Each step draws one :math:`t`.

    Args:
        curve_t: Position :math:`t` of the final weights, 0 to 1; 0 is the backdoored network.
        end_epochs: Epochs of fine-tuning for :math:`w_1`, 0 or more.
        end_lr: Learning rate for :math:`w_1` (SGD with momentum 0.9 and a cosine schedule), greater
            than 0.
        end_batch_size: Images per step for :math:`w_1`, 2 or more.

    Shape:
        - images: ``(N, C, H, W)`` float, normalized.
        - labels: ``(N,)`` int64.

    Raises:
        ValueError: If an argument is out of its range.

    Needs:
        Clean images with true labels.

    Cost:
        ``end_epochs`` of fine-tuning, the tuning of the curve, and one pass for BatchNorm
        statistics.

    When it fails:
        If the fine-tuned end still holds the backdoor, so do the weights between the two ends. A
        defender with one network has no better end.

    Note:
        The paper connects two networks of different trainings; here, as in benchmarks, the second
        one is the first one after fine-tuning, because a defender has only one.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
        >>> clean = CleanData(torch.rand(8, 3, 2, 2), torch.arange(8) % 3)
        >>> defense, generator = ModeConnectivityRepair(end_epochs=1), torch.Generator()
        >>> defense.prepare(net, generator)
        >>> defense.study(net, clean, generator)
        >>> bool((defense.point(0.0)["1.bias"] == defense.start[-3:]).all())
        True

    References:
        Zhao, Chen, Das, Natesan Ramamurthy and Lin, "Bridging mode connectivity in loss landscapes
        and adversarial robustness", ICLR 2020, arXiv 2005.00060.

    See Also:
        - :class:`~fst_lightning.defenses.PathAwareMinimization`: the same path, in each step.
        - :class:`~fst_lightning.robustness.LinearConnectivity`: measures such a path.
    """

    start: Tensor
    """:math:`w_0`, all parameters in one vector; empty before :meth:`prepare`."""
    end: Tensor
    """:math:`w_1`; empty before :meth:`study`."""

    def __init__(
        self,
        curve_t: float = 0.1,
        end_epochs: int = 10,
        end_lr: float = 0.01,
        end_batch_size: int = 128,
    ) -> None:
        super().__init__()
        check_number("curve_t", curve_t, high=1)
        check_number("end_epochs", end_epochs, whole=True)
        check_number("end_lr", end_lr, low_open=True)
        check_number("end_batch_size", end_batch_size, low=2, whole=True)
        self.curve_t = curve_t
        self.end_epochs = end_epochs
        self.end_lr = end_lr
        self.end_batch_size = end_batch_size
        self.register_buffer("start", torch.empty(0))
        self.register_buffer("end", torch.empty(0))
        # Kept in a list so that `nn.Module` does not register it and save its weights twice.
        self._net: list[nn.Module] = []

    def prepare(self, net: nn.Module, generator: torch.Generator) -> None:
        """Keep a copy of the backdoored weights."""
        self._net = [net]
        self.start = _vector(net)
        self.end = torch.empty(0)

    def study(self, net: nn.Module, clean: CleanData, generator: torch.Generator) -> None:
        """Fine-tune a copy for the end of the curve, and start the middle halfway."""
        other = copy.deepcopy(net)
        tune(
            other,
            clean,
            generator,
            epochs=self.end_epochs,
            lr=self.end_lr,
            batch_size=self.end_batch_size,
        )
        self.end = _vector(other)
        _set(net, (self.start + self.end) / 2)

    def loss(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """The cross-entropy at a random point of the curve; its gradient goes to the middle."""
        if len(self.end) == 0:
            return functional.cross_entropy(net(images), labels)
        t = float(torch.rand(()))
        logits = torch.func.functional_call(net, self.point(t), (images,))
        return functional.cross_entropy(logits, labels)

    def point(self, t: float) -> dict[str, Tensor]:
        """The weights at t in [0, 1] by name, a function of the network's weights, the middle."""
        parameters = dict(self._net[0].named_parameters())
        sizes = [parameter.numel() for parameter in parameters.values()]
        ends = zip(torch.split(self.start, sizes), torch.split(self.end, sizes), strict=True)
        return {
            name: bezier(start.view_as(middle), middle, end.view_as(middle), t).to(middle.dtype)
            for (name, middle), (start, end) in zip(parameters.items(), ends, strict=True)
        }

    @torch.no_grad()
    def conclude(self, net: nn.Module, clean: CleanData, generator: torch.Generator) -> None:
        """Give the network the weights at ``curve_t``, with matching BatchNorm statistics."""
        if len(self.end) == 0:
            return
        chosen = self.point(self.curve_t)
        for name, parameter in net.named_parameters():
            parameter.copy_(chosen[name])
        recompute_batchnorm(net, clean)

    def finish(self) -> None:
        """Drop the reference to the network."""
        self._net = []

    @torch.no_grad()
    def findings(self) -> dict[str, Any]:
        """The chosen point, and the distance between the two ends."""
        if len(self.end) == 0:
            return {"curve_t": self.curve_t}
        distance = float((self.end - self.start).norm())
        return {"curve_t": self.curve_t, "end_distance": round(distance, 4)}


def bezier(start: Tensor, middle: Tensor, end: Tensor, t: float) -> Tensor:
    r"""A point of a quadratic Bezier curve: :math:`(1-t)^2 w_0 + 2t(1-t)\theta + t^2 w_1`.

    Args:
        start: :math:`w_0`, any shape.
        middle: :math:`\theta`, the same shape.
        end: :math:`w_1`, the same shape.
        t: Position, 0 to 1.

    Example:
        >>> bezier(torch.zeros(1), torch.ones(1), torch.zeros(1), 0.5)
        tensor([0.5000])
    """
    return (1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * end


def _vector(net: nn.Module) -> Tensor:
    return flat(net.parameters())


@torch.no_grad()
def _set(net: nn.Module, vector: Tensor) -> None:
    parameters = list(net.parameters())
    parts = torch.split(vector, [parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.copy_(part.view_as(parameter))
