"""The base class of defenses that replace, freeze or project the head."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fst_lightning.defenses.common.defense import Defense, freeze
from fst_lightning.defenses.common.orthogonal import orthogonal_to
from fst_lightning.defenses.common.reference_head import ReferenceHead
from fst_lightning.models import Head, find_head, num_inputs, weight_matrix
from fst_lightning.validate import check_choice

Reinit = Literal["orthogonal", "uniform", "none"]


class HeadDefense(Defense):
    r"""Tune a network around its linear head :math:`W`, whose original weight is :math:`W_0`.

    :math:`W_0` is the weight before the first purification of this head. A second fit with the
    same defense continues with the tuned head; another defense starts again from the same
    :math:`W_0`.

    Args:
        reinit: The new head before the first step. ``uniform``: weight and bias
            from :math:`U(-1/\sqrt d, 1/\sqrt d)`; ``orthogonal``: see
            :func:`~fst_lightning.defenses.common.orthogonal.orthogonal_to`, bias zero; ``none``.
        project_norm: Whether to scale :math:`W` to the norm of :math:`W_0` after each step.
        train_head: Whether to train the head's weight and bias.
        train_features: Whether to train all other parameters. If False, BatchNorm and dropout stay
            in evaluation mode, so that running statistics do not drift either.
        head: Dotted name of the head; None finds it.

    Raises:
        ValueError: If ``reinit`` is unknown.
    """

    needs_features: ClassVar[bool] = True
    """Whether the defense needs layers in front of the head."""

    original_weight: Tensor
    """:math:`W_0`, ``(C, d)``; empty before :meth:`prepare`."""

    def __init__(
        self,
        *,
        reinit: Reinit,
        project_norm: bool,
        train_head: bool = True,
        train_features: bool = True,
        head: str | None = None,
    ) -> None:
        super().__init__()
        check_choice("reinit", reinit, Reinit)
        self.reinit = reinit
        self.project_norm = project_norm
        self.train_head = train_head
        self.train_features = train_features
        self.head = head
        self.register_buffer("original_weight", torch.empty(0))
        # Kept in a list so that `nn.Module` does not register it and save its weights twice.
        self._net: list[nn.Module] = []
        self._frozen: list[nn.Parameter] = []
        self._linear: list[Head] = []
        self._owner = uuid.uuid4().hex
        self._prepared = torch.empty(0)
        self._active = False

    @property
    def needs_head(self) -> bool:
        """Whether it treats the head differently; plain fine-tuning does not."""
        all_alike = self.train_head and self.train_features
        return self.reinit != "none" or self.project_norm or not all_alike

    @property
    def knows_head(self) -> bool:
        """Whether :meth:`prepare` found a head."""
        return bool(self._linear)

    @property
    def linear(self) -> Head:
        """The head that is tuned; only after :meth:`prepare`."""
        if not self._linear:
            raise RuntimeError("Expected `prepare` to be called before the head is used.")
        return self._linear[0]

    def prepare(self, net: nn.Module, generator: torch.Generator) -> None:
        """Snapshot the head, re-initialize it and freeze what is not tuned.

        Raises:
            ValueError: If the head is not finite, is zero although its norm is kept, or has changed
                since its last purification.
        """
        self.finish()
        self._net, self._linear = [net], []
        try:
            name, linear = find_head(net, self.head)
        except ValueError:
            if self.needs_head or self.head is not None:
                raise
            self.original_weight = torch.empty(0)
            return
        self._linear = [linear]
        if not bool(torch.isfinite(linear.weight).all()):
            raise ValueError(f"Expected the head {name} to be finite, but it has NaN or infinity.")
        reference = ReferenceHead(linear)
        original = reference.original
        if original is not None and not reference.is_known:
            raise ValueError(
                f"Expected the head {name} to hold the weights that its last purification left, or "
                "those it had before, but it has changed since: which of them is the backdoored "
                "head is not known. Load the backdoored weights again to start anew; for another "
                "checkpoint, build a new network."
            )
        continues = reference.left_by(self._owner)
        # In float32 for any network, because the norm and the projection are computed in it.
        self.original_weight = (
            linear.weight.detach().clone().float()
            if original is None
            else original.clone().to(linear.weight.device)
        )
        if self.project_norm and not bool(self.original_weight.any()):
            raise ValueError(
                f"Expected the head {name} to have a norm to keep, but its weight is all zeros; "
                "is this a trained network?"
            )
        if not continues:
            reference.start(self.original_weight, self._owner)
            if original is not None and self.reinit != "none":
                with torch.no_grad():
                    linear.weight.copy_(self.original_weight)
            reinitialize(linear, self.reinit, generator)
        self._prepared = linear.weight.detach().cpu().clone()
        self._active = True
        if not self.train_features:
            kept = {id(parameter) for parameter in linear.parameters()}
            self._frozen += freeze(p for p in net.parameters() if id(p) not in kept)
        if not self.train_head:
            self._frozen += freeze(linear.parameters())

    def has_features(self) -> bool:
        """Whether the network has parameters in front of its head."""
        head = {id(parameter) for parameter in self.linear.parameters()}
        return any(id(p) not in head for net in self._net for p in net.parameters())

    def check_weights(self) -> None:
        """Refuse a head that changed after :meth:`prepare`."""
        weight = self.linear.weight.detach()
        if not torch.equal(weight, self._prepared.to(weight.device, weight.dtype)):
            raise ValueError(
                "Expected the head to be the one that was prepared, but its weights were replaced "
                "before the first step, so that the penalty and the norm belong to another head. "
                "Load the weights before `fit` is called, or in `configure_model`; not in `setup`, "
                "`on_fit_start` or another callback."
            )

    def check_tuned(self) -> None:
        """Refuse a head that the steps did not change."""
        if self.reinit == "none" or not self.train_head:
            return
        weight = self.linear.weight.detach()
        earlier = (self._prepared, self.original_weight)
        if any(torch.equal(weight, kept.to(weight.device, weight.dtype)) for kept in earlier):
            raise ValueError(
                "Expected the steps to have changed the head, but it holds the weights from before "
                "the first step: the network is not purified. Either the learning rate is 0, or "
                "another callback put the old weights back (weight averaging that never started)."
            )

    @torch.no_grad()
    def after_step(self) -> None:
        r"""Project: :math:`W \leftarrow W \, \|W_0\|_F / \|W\|_F`, computed in float32."""
        if self.project_norm:
            weight = self.linear.weight
            # In bf16 and fp16, a factor this close to 1 would round to 1.
            precise = weight.to(torch.promote_types(weight.dtype, torch.float32))
            norm = self.original_weight.float().norm()
            weight.copy_(precise * (norm / precise.norm()))

    def finish(self) -> None:
        """Undo the freezes."""
        if self._active:
            ReferenceHead(self.linear).stop()
        self._active = False
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self._frozen = []

    def always_eval(self) -> Iterator[nn.Module]:
        """The whole network if only its head is tuned."""
        if not self.train_features:
            yield from self._net

    @torch.no_grad()
    def statistics(self) -> dict[str, Tensor]:
        """The cosine of the angle between old and new head, and the new head's norm."""
        if not self.knows_head:
            return {}
        weight, original = self.linear.weight.float(), self.original_weight.float()
        cosine = (weight * original).sum() / (weight.norm() * original.norm())
        return {"head_cosine": cosine, "head_norm": weight.norm()}

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        # The snapshot of a different head cannot be a penalty for this one.
        known, saved = self.original_weight, state_dict.get(f"{prefix}original_weight")
        if isinstance(saved, Tensor) and known.numel() and saved.shape != known.shape:
            raise RuntimeError(
                f"Expected `original_weight` of shape {tuple(known.shape)}, as the head that was "
                f"prepared, but the state has {tuple(saved.shape)}."
            )
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        if self._active:
            # The resumed run knows the original head; this network may already be purified.
            ReferenceHead(self.linear).start(self.original_weight, self._owner)


@torch.no_grad()
def reinitialize(linear: Head, reinit: Reinit, generator: torch.Generator) -> None:
    """Re-initialize a head in place, with the same numbers on each device."""
    if reinit == "none":
        return
    if reinit == "orthogonal":
        weight = weight_matrix(linear)
        weight.copy_(orthogonal_to(weight, generator))
        if linear.bias is not None:
            linear.bias.zero_()
        return
    bound = 1 / math.sqrt(num_inputs(linear))
    for parameter in (linear.weight, linear.bias):
        if parameter is not None:
            drawn = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
            parameter.copy_(drawn)
