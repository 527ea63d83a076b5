"""The interface of all defenses: the hooks of a purification."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.argument_repr import ShowsArguments
from fst_lightning.defenses.common.clean_data import CleanData
from fst_lightning.defenses.common.found_buffers import FoundBuffers
from fst_lightning.defenses.common.whole_set import keep_modes, seeded
from fst_lightning.models.softmax import logits_taken


class Defense(ShowsArguments, FoundBuffers):
    r"""Purify a network by tuning it on a few clean images.

    The loss of a step is :math:`\ell(f, x, y) + \Omega(\theta)`: :meth:`loss` on the batch plus
    :meth:`penalty` on the weights. A subclass overrides the hooks that it needs. This class alone
    is plain fine-tuning.

    The order of a run is:

    1. :meth:`prepare`, before the optimizer is made and before a checkpoint is restored;
    2. :meth:`study`, before the first step, on the device; not again in a resumed run;
    3. for every epoch :meth:`begin_epoch`; for every step :meth:`loss` and :meth:`penalty`, the
       backward pass, :meth:`after_backward`, :meth:`before_step`, the optimizer,
       :meth:`after_step`; none of it if the defense is :attr:`done` or its :attr:`tunes` is False;
    4. :meth:`conclude`, after the last step;
    5. :meth:`finish`, also after an exception.

    Results of steps 1 and 2 are kept in the network's weights and in buffers, which move to the
    device and into the checkpoints of an interrupted run. The constructor registers the buffers,
    empty (``torch.empty(0)``) if their shape is not known yet; they are restored as they were
    saved. Random numbers come from the given generators, and in :meth:`loss` from the global ones,
    which are seeded again in each epoch.
    """

    tunes: ClassVar[bool] = True
    """False for a defense that needs no training steps."""

    held_out: ClassVar[float] = 0.0
    """The share of the clean images that no step sees, in [0, 1): ``clean.held_out``."""

    needs_poisoned_set: ClassVar[bool] = False
    """Whether it inspects the training set as it was delivered: ``clean.poisoned``."""

    alpha_is_strength: ClassVar[bool] = True
    """Whether ``alpha=auto`` can search the constructor's ``alpha`` by its cost in accuracy."""

    keeps_budget: ClassVar[bool] = False
    """Whether a run that costs more than ``tuning.max_ca_drop`` is reported as no success."""

    searches_in_bfloat16: ClassVar[bool] = False
    """Whether the network may compute in bfloat16 in :meth:`study`, :meth:`begin_epoch` and
    :meth:`conclude` too, if it does so in the steps (``bf16-mixed``)."""

    recommended_lr: ClassVar[float] = 0.01
    """The learning rate of SGD with which the defense is tuned, unless somebody names another."""

    def prepare(self, net: nn.Module, generator: torch.Generator) -> None:
        """Inspect and change the backdoored network: snapshots, masks, new weights, freezes.

        It must be fast and runs on the CPU.

        Args:
            net: The backdoored network (or a LightningModule around it); changed in place.
            generator: A CPU generator, the only source of random numbers.
        """

    def study(self, net: nn.Module, clean: CleanData, generator: torch.Generator) -> None:
        """Process all clean images at once: a teacher, a ranking, an inversion, unlearning.

        Args:
            net: The network, on its device, in evaluation mode; changed in place.
            clean: The clean images, on the same device.
            generator: A CPU generator, the only source of random numbers.
        """

    def begin_epoch(
        self, net: nn.Module, clean: CleanData, epoch: int, generator: torch.Generator
    ) -> None:
        """Act before the steps of an epoch.

        Args:
            net: The network, in training mode.
            clean: The clean images, on the same device.
            epoch: From 0.
            generator: The CPU generator of this epoch.
        """

    def loss(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """The loss on a batch of clean images, as a scalar; cross-entropy unless overridden.

        It may move the weights in place as long as :meth:`after_backward` puts them back exactly.

        Args:
            net: The network.
            images: ``(N, C, H, W)``, augmented and normalized.
            labels: ``(N,)`` int64.
        """
        return functional.cross_entropy(net(images), labels)

    def penalty(self) -> Tensor | None:
        """A penalty on the weights, as a scalar with a gradient; None for none."""
        return None

    def after_backward(self) -> None:
        """Act after each backward pass, for example restore weights that :meth:`loss` moved."""

    def before_step(self) -> None:
        """Change the gradients before a step of the optimizer, unscaled and not clipped."""

    def after_step(self) -> None:
        """Act on the weights after each step of the optimizer, without gradients."""

    def conclude(self, net: nn.Module, clean: CleanData, generator: torch.Generator) -> None:
        """Act after the last step: choose a threshold, prune, recompute BatchNorm.

        Args:
            net: The network, in evaluation mode; changed in place.
            clean: The clean images, on the same device; ``clean.held_out`` is for decisions.
            generator: A CPU generator, the only source of random numbers.
        """

    def finish(self) -> None:
        """Leave an ordinary network: fold masks, undo freezes, remove hooks.

        A second call, or a call before :meth:`prepare`, does nothing.
        """

    def always_eval(self) -> Iterator[nn.Module]:
        """The modules that stay in evaluation mode while the network is tuned."""
        return iter(())

    def statistics(self) -> dict[str, Tensor]:
        """Scalars to plot, logged once per epoch as ``train/<name>``."""
        return {}

    def findings(self) -> dict[str, Any]:
        """The results of the defense, as plain values for ``results.json``.

        ``summary``, if given, is one sentence for the terminal and the report.
        """
        return {}

    def shortfall(self) -> str | None:
        """What the defense failed to do; None if it succeeded.

        A clause such as ``Nothing was pruned``. The results of a run with a shortfall are not
        presented as a success; the ``summary`` of the findings gives the reason.
        """
        return None

    @property
    def done(self) -> bool:
        """Whether no further steps are needed, for example because nothing was suspicious."""
        return False

    @property
    def needs_head(self) -> bool:
        """Whether it needs to know the head of the network, a linear layer."""
        return False

    @property
    def needs_batch(self) -> bool:
        """Whether it needs more than weights and gradients, which a callback cannot give."""
        places = ("study", "begin_epoch", "loss", "after_backward", "before_step", "conclude")
        return (
            self.held_out > 0
            or self.needs_poisoned_set
            or any(self.overrides(place) for place in places)
        )

    @property
    def needs_clean(self) -> bool:
        """Whether it needs all clean images at once, not only mini-batches of them."""
        return any(self.overrides(place) for place in ("study", "begin_epoch", "conclude"))

    def overrides(self, place: str) -> bool:
        """Whether the class overrides this method."""
        return getattr(type(self), place) is not getattr(Defense, place)

    def alpha_range(self, net: nn.Module) -> tuple[float, float]:
        """The range in which ``alpha=auto`` searches, for a defense that has an alpha.

        Args:
            net: The original network.

        Returns:
            The weakest and the strongest setting, both greater than 0; the weakest one changes
            clean accuracy least.
        """
        return 1e-3, 1.0


def apply(
    defense: Defense, net: nn.Module, clean: CleanData, generator: torch.Generator
) -> nn.Module:
    """Run a defense that needs no training steps, in place: prepare, study, conclude, finish.

    Args:
        defense: One whose ``tunes`` is False.
        net: The network to purify; afterwards in its original mode.
        clean: The clean images, on the network's device.
        generator: A CPU generator, the only source of random numbers.

    Returns:
        The network.

    Example:
        >>> from fst_lightning.defenses import NoDefense
        >>> clean = CleanData(torch.rand(4, 3, 8, 8), torch.arange(4))
        >>> type(apply(NoDefense(), nn.Flatten(), clean, torch.Generator())).__name__
        'Flatten'
    """
    with logits_taken(net), keep_modes(net), seeded(generator, clean.device):
        try:
            defense.prepare(net, generator)
            defense.to(clean.device)
            net.eval()
            defense.study(net, clean, generator)
            net.eval()
            defense.conclude(net, clean, generator)
        finally:
            defense.finish()
    return net


def freeze(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Freeze these parameters, and return those that were trainable before."""
    frozen = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    return frozen
