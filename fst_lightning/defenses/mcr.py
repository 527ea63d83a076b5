"""Mode connectivity repair (MCR): a point on a curve from the backdoored to a tuned network.

Zhao, Chen, Das, Natesan Ramamurthy and Lin, "Bridging mode connectivity in loss landscapes and
adversarial robustness", ICLR 2020, arXiv 2005.00060.

Example:
    ``python purify.py attack=badnets defense=mcr defense.curve_t=0.3``
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.defenses.common.channel_masks import check_number
from fst_lightning.defenses.common.clean_data import CleanData
from fst_lightning.defenses.common.defense import Defense
from fst_lightning.defenses.common.snapshot import flat
from fst_lightning.defenses.common.whole_set import recompute_batchnorm, tune


class ModeConnectivityRepair(Defense):
    r"""Train a Bezier curve of low loss between two networks, and take a point on it.

    .. math:: \phi(t) = (1 - t)^2 w_0 + 2 t (1 - t) \theta + t^2 w_1, \qquad
        \min_\theta \mathbb{E}_{t \sim U(0, 1)}\, \mathrm{CE}(f_{\phi(t)}(x), y)

    :math:`w_0` is the network that came in and :math:`w_1` that network fine-tuned on the clean
    images, as benchmarks do it where the defender has no second network. Theta starts between the
    two. The steps train it, one t a step, and in the end the network gets :math:`\phi(t)` for a
    small t, with BatchNorm statistics of its own.

    Args:
        curve_t: t at the end, in [0, 1].
        end_epochs: of fine-tuning for :math:`w_1`, 0 or more.
        end_lr: of SGD with momentum 0.9 and a cosine, greater than 0.
        end_batch_size: images a step, 2 or more.

    Raises:
        ValueError: for an argument out of its range.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
        >>> clean = CleanData(torch.rand(8, 3, 2, 2), torch.arange(8) % 3)
        >>> defense, generator = ModeConnectivityRepair(end_epochs=1), torch.Generator()
        >>> defense.prepare(net, generator)
        >>> defense.study(net, clean, generator)
        >>> bool((defense.point(0.0)["1.bias"] == defense.start[-3:]).all())
        True
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
        # In a list it is no submodule: the network's weights must not be saved twice.
        self._net: list[nn.Module] = []

    def prepare(self, net: nn.Module, generator: torch.Generator) -> None:
        """Keep the weights that came in."""
        self._net = [net]
        self.start = _vector(net)
        self.end = torch.empty(0)

    def study(self, net: nn.Module, clean: CleanData, generator: torch.Generator) -> None:
        """Fine-tune a copy for the end of the curve; put the network between the two."""
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
        """Cross-entropy at a random point of the curve; its gradient goes to the middle."""
        if len(self.end) == 0:
            return functional.cross_entropy(net(images), labels)
        t = float(torch.rand(()))
        logits = torch.func.functional_call(net, self.point(t), (images,))
        return functional.cross_entropy(logits, labels)

    def point(self, t: float) -> dict[str, Tensor]:
        """The weights at t in [0, 1] by name; a function of the network's own, the middle."""
        parameters = dict(self._net[0].named_parameters())
        sizes = [parameter.numel() for parameter in parameters.values()]
        ends = zip(torch.split(self.start, sizes), torch.split(self.end, sizes), strict=True)
        return {
            name: bezier(start.view_as(middle), middle, end.view_as(middle), t).to(middle.dtype)
            for (name, middle), (start, end) in zip(parameters.items(), ends, strict=True)
        }

    @torch.no_grad()
    def conclude(self, net: nn.Module, clean: CleanData, generator: torch.Generator) -> None:
        """Give the network the weights at ``curve_t`` and BatchNorm statistics that fit them."""
        if len(self.end) == 0:
            return
        chosen = self.point(self.curve_t)
        for name, parameter in net.named_parameters():
            parameter.copy_(chosen[name])
        recompute_batchnorm(net, clean)

    def finish(self) -> None:
        """Forget the network."""
        self._net = []

    @torch.no_grad()
    def findings(self) -> dict[str, Any]:
        """The point that was taken, and how far the two ends are from each other."""
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
        t: in [0, 1].

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
