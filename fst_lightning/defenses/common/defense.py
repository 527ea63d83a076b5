"""What every defense is: the places of a purification in which it may act."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.arguments import ShowsArguments
from fst_lightning.defenses.common.clean_data import CleanData
from fst_lightning.defenses.common.whole_set import keep_modes, seeded
from fst_lightning.models.softmax import logits_taken


class Defense(ShowsArguments, nn.Module):
    r"""Purify a network by tuning it on a few clean images.

    The loss of a step is :math:`\ell(f, x, y) + \Omega(\theta)`: :meth:`loss` on the batch plus
    :meth:`penalty` on the weights. A subclass overrides the places that it needs; this class alone
    is plain fine-tuning.

    The order of a run is:

    1. :meth:`prepare`, before the optimizer is made and before a checkpoint is restored;
    2. :meth:`study`, before the first step, on the device; not again in a run that is resumed;
    3. for every epoch :meth:`begin_epoch`; for every step :meth:`loss` and :meth:`penalty`, the
       backward pass, :meth:`after_backward`, :meth:`before_step`, the optimizer,
       :meth:`after_step`; none of it where :attr:`done`, or where the class does not :attr:`tunes`;
    4. :meth:`conclude`, after the last step;
    5. :meth:`finish`, also after an exception.

    What a defense finds in 1 and 2 it keeps in the network's weights and in buffers, which move to
    the device and into the checkpoints of an interrupted run. The constructor registers them, empty
    (``torch.empty(0)``) where their shape is not known yet: they come back as they were saved.
    Random numbers come from the generators that it is given; in :meth:`loss` from the global ones,
    which are seeded anew every epoch.
    """

    tunes: ClassVar[bool] = True
    """False for a defense that needs no training steps."""

    held_out: ClassVar[float] = 0.0
    """The share of the clean images that no step sees, in [0, 1): ``clean.held_out``."""

    needs_poisoned_set: ClassVar[bool] = False
    """Whether it inspects the training set as it was delivered: ``clean.poisoned``."""

    alpha_is_strength: ClassVar[bool] = True
    """Whether an ``alpha`` of the constructor can be searched by what it costs: ``alpha=auto``."""

    def prepare(self, net: nn.Module, generator: torch.Generator) -> None:
        """Look at the original network and change it: snapshot, masks, new weights, freezes.

        Quick, and on the CPU.

        Args:
            net: The backdoored network (or a LightningModule around it); changed in place.
            generator: A CPU generator, the only source of random numbers.
        """

    def study(self, net: nn.Module, clean: CleanData, generator: torch.Generator) -> None:
        """Work on all the clean images at once: a teacher, a ranking, an inversion, unlearning.

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
            generator: A CPU generator, of this epoch.
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
        """Act right after every backward pass: put weights back that :meth:`loss` has moved."""

    def before_step(self) -> None:
        """Change the gradients right before a step of the optimizer; unscaled, not yet clipped."""

    def after_step(self) -> None:
        """Act on the weights right after every step of the optimizer, without gradients."""

    def conclude(self, net: nn.Module, clean: CleanData, generator: torch.Generator) -> None:
        """Act after the last step: choose a threshold, prune, recompute BatchNorm.

        Args:
            net: The network, in evaluation mode; changed in place.
            clean: The clean images, on the same device; decisions are taken on ``clean.held_out``.
            generator: A CPU generator, the only source of random numbers.
        """

    def finish(self) -> None:
        """Leave the network as an ordinary one: fold masks, undo freezes, remove hooks.

        Called twice, or before anything was prepared, it does no harm.
        """

    def always_eval(self) -> Iterator[nn.Module]:
        """The modules that stay in evaluation mode while the network is tuned."""
        return iter(())

    def statistics(self) -> dict[str, Tensor]:
        """Figures worth a curve, as scalars; logged once per epoch as ``train/<name>``."""
        return {}

    def findings(self) -> dict[str, Any]:
        """What was found and decided, as plain values for ``results.json``.

        ``summary``, if given, is one sentence for the terminal and the report.
        """
        return {}

    def shortfall(self) -> str | None:
        """What the defense set out to do and did not do; None if it did it.

        A clause such as ``Nothing was pruned``. The results of a run with a shortfall are not
        presented as a success; the ``summary`` of the findings gives the reason.
        """
        return None

    @property
    def done(self) -> bool:
        """Whether no (further) steps are needed, for example because nothing was suspicious."""
        return False

    @property
    def needs_head(self) -> bool:
        """Whether it needs to know the head of the network, a linear layer."""
        return False

    @property
    def needs_batch(self) -> bool:
        """Whether it needs more than the weights and their gradients, so that no callback does."""
        places = ("study", "begin_epoch", "loss", "after_backward", "before_step", "conclude")
        return (
            self.held_out > 0
            or self.needs_poisoned_set
            or any(self.overrides(place) for place in places)
        )

    @property
    def needs_clean(self) -> bool:
        """Whether it looks at all the clean images at once, and not only at batches of them."""
        return any(self.overrides(place) for place in ("study", "begin_epoch", "conclude"))

    def overrides(self, place: str) -> bool:
        """Whether the class writes this method itself."""
        return getattr(type(self), place) is not getattr(Defense, place)

    def alpha_range(self, net: nn.Module) -> tuple[float, float]:
        """Between which values of ``alpha`` the right one is searched, for ``alpha=auto``.

        For a defense that has an alpha; both above 0.

        Args:
            net: The original network.

        Returns:
            The weakest and the strongest setting: the former changes clean accuracy least.
        """
        return 1e-3, 1.0

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        # What was found has the shape of the network, or of the findings: it takes the one that it
        # was saved with. A defense that is only to be looked at need not be prepared first.
        for name, buffer in list(self._buffers.items()):
            saved = state_dict.get(prefix + name)
            if not isinstance(saved, Tensor) or name in self._non_persistent_buffers_set:
                continue
            if buffer is None or buffer.shape != saved.shape:
                device = saved.device if buffer is None else buffer.device
                self._buffers[name] = torch.empty_like(saved, device=device)
        super()._load_from_state_dict(state_dict, prefix, *arguments)


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
    """Stop these parameters from training; returns those that were trained before."""
    frozen = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    return frozen
