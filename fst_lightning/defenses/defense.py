"""What every defense is: the places of a tuning run in which it may act."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional


class Defense(nn.Module):
    r"""Purify a network by tuning it on a few clean images.

    The loss of a step is :math:`\ell(f, x, y) + \Omega(\theta)`: :meth:`loss` on the batch plus
    :meth:`penalty` on the weights. A subclass overrides the places that it needs; this class alone
    is plain fine-tuning. What it keeps of the network it keeps as buffers, which move to the device
    and into the checkpoints of an interrupted run.

    The order of a run is: :meth:`prepare` once, before the optimizer is made (and before a
    checkpoint is restored); for every step :meth:`loss`, :meth:`penalty`, the optimizer, and
    :meth:`after_step`; at the end :meth:`finish`.
    """

    tunes: ClassVar[bool] = True
    """False for a defense that needs no training steps."""

    def prepare(self, net: nn.Module, generator: torch.Generator) -> None:
        """Look at the network that came in and change it: snapshot, re-initialise, freeze.

        Args:
            net: the backdoored network (or a LightningModule around it); changed in place.
            generator: a CPU generator, the only source of random numbers.
        """

    def loss(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """The loss on a batch of clean images, as a scalar; cross-entropy unless overridden.

        Args:
            net: the network.
            images: ``(N, C, H, W)``, normalised.
            labels: ``(N,)`` int64.
        """
        return functional.cross_entropy(net(images), labels)

    def penalty(self) -> Tensor | None:
        """A penalty on the weights, as a scalar with a gradient; None for none."""
        return None

    def after_step(self) -> None:
        """Act on the weights right after every step of the optimizer, without gradients."""

    def finish(self) -> None:
        """Leave the network as an ordinary one: fold masks, undo freezes."""

    def always_eval(self) -> Iterator[nn.Module]:
        """The modules that stay in evaluation mode while the network is tuned."""
        return iter(())

    def statistics(self) -> dict[str, Tensor]:
        """Figures worth a curve, as scalars; logged once an epoch as ``train/<name>``."""
        return {}

    @property
    def needs_batch(self) -> bool:
        """Whether the loss is the defense's own, so that it can't act on the weights alone."""
        return type(self).loss is not Defense.loss


def freeze(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Stop these parameters from training; returns those that were trained before."""
    frozen = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    return frozen
