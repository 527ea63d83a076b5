r"""Masks on the channels of BatchNorm, for defenses that prune.

A channel is pruned at the scale of BatchNorm, :math:`y_c = m_c \gamma_c \hat x_c + \beta_c`: the
mask can be folded into :math:`\gamma`, whatever convolution comes before.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from fst_lightning.defenses.common.clean_data import CleanData
from fst_lightning.defenses.common.defense import Defense, freeze
from fst_lightning.defenses.common.whole_set import accuracy, require_batchnorm
from fst_lightning.validate import check_number

NOTHING_PRUNED = "Nothing was pruned"
"""The shortfall of a defense that prunes and found no channel to prune."""

THRESHOLDS = tuple(step / 20 for step in range(18, 0, -1))
"""Thresholds of masks, largest first: 0.90, 0.85, ..., 0.05."""


class ChannelMask(nn.Module):
    r"""A parametrization of BatchNorm's scale: :math:`\gamma \mapsto m \odot \gamma`.

    Args:
        scale: :math:`\gamma`, ``(C,)``; the mask starts at 1.

    Example:
        >>> norm = nn.BatchNorm2d(3)
        >>> mask = ChannelMask(norm.weight)
        >>> attach(norm, "weight", mask)
        >>> with torch.no_grad(): _ = mask.mask.copy_(torch.tensor([1.0, 0.0, 0.5]))
        >>> norm.weight.tolist()
        [1.0, 0.0, 0.5]
    """

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.mask = nn.Parameter(torch.ones_like(scale.detach()))

    def forward(self, scale: Tensor) -> Tensor:
        """Scale every channel."""
        return self.mask * scale


def attach(norm: _BatchNorm, name: str, parametrization: nn.Module) -> None:
    """Register a parametrization of ``norm.<name>``."""
    parametrize.register_parametrization(norm, name, parametrization)


@torch.no_grad()
def detach(norm: _BatchNorm, name: str) -> None:
    """Make ``norm.<name>`` a plain parameter again, with its current value.

    It is the same parameter in the same storage, and the keys of the state dict keep their order.
    """
    if not parametrize.is_parametrized(norm, name):
        return
    folded = getattr(norm, name).detach().clone()
    parametrize.remove_parametrizations(norm, name, leave_parametrized=False)
    getattr(norm, name).copy_(folded)
    for key in ("weight", "bias"):
        if key in norm._parameters:
            norm._parameters[key] = norm._parameters.pop(key)


def scaled_batchnorms(net: nn.Module, name: str) -> dict[str, _BatchNorm]:
    """The BatchNorm layers that have a scale, in order of registration.

    Args:
        net: The network.
        name: Name of the defense in the error.

    Raises:
        ValueError: If there is none.
    """
    found = require_batchnorm(net, name)
    scaled = {path: norm for path, norm in found.items() if norm.affine}
    if not scaled:
        raise ValueError(
            f"Expected BatchNorm layers with a scale for {name}, but all {len(found)} of "
            f"{type(net).__name__} have affine=False. Use a defense that needs none, such as fst."
        )
    return scaled


@torch.no_grad()
def prune(norm: _BatchNorm, pruned: Tensor) -> None:
    r"""Prune channels: :math:`\gamma_c = \beta_c = 0`.

    Args:
        norm: The layer, changed in place.
        pruned: ``(C,)`` bool.
    """
    norm.weight[pruned] = 0
    norm.bias[pruned] = 0


def outliers(scores: Tensor, u: float) -> Tensor:
    r"""Outliers of a layer: :math:`s_c > \mathrm{mean}(s) + u\,\mathrm{std}(s)`.

    The standard deviation is the unbiased one. One outlier among C values is at most
    :math:`(C - 1) / \sqrt C` deviations away: with u = 3, layers of 10 channels or fewer lose none.

    Args:
        scores: ``(C,)``; values that are not finite are ignored and are not outliers.
        u: Number of standard deviations, greater than 0.

    Example:
        >>> outliers(torch.tensor([1.0] * 15 + [9.0]), u=3).nonzero().flatten().tolist()
        [15]
    """
    valid = torch.isfinite(scores)
    if int(valid.sum()) < 2:
        return torch.zeros_like(valid)
    known = scores[valid].double()
    return valid & (scores.double() > known.mean() + u * known.std())


def listed(pruned: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """The numbers of the channels that are True, without layers that have none."""
    numbers = {name: flags.nonzero().flatten().tolist() for name, flags in pruned.items()}
    return {name: channels for name, channels in numbers.items() if channels}


class OutlierPruning(Defense):
    r"""Prune the channels whose score is an outlier of their layer; no training.

    .. math:: \gamma_c = \beta_c = 0 \quad\text{if}\quad
        s_c > \mathrm{mean}_c(s) + u\,\mathrm{std}_c(s)

    Args:
        u: Standard deviations above the mean of the layer, greater than 0; a smaller value prunes
            more.

    Raises:
        ValueError: If ``u`` is not greater than 0.
    """

    tunes: ClassVar[bool] = False

    def __init__(self, u: float) -> None:
        super().__init__()
        check_number("u", u, low=0, low_open=True)
        self.u = u
        self._norms: dict[str, _BatchNorm] = {}
        self._pruned: dict[str, Tensor] = {}

    def prepare(self, net: nn.Module, generator: torch.Generator) -> None:
        """Find the BatchNorm layers."""
        self._norms, self._pruned = scaled_batchnorms(net, type(self).__name__), {}

    @abstractmethod
    def scores(
        self, net: nn.Module, clean: CleanData, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """A score of each channel, ``(C,)``, by name of the BatchNorm layer; larger is worse."""

    @torch.no_grad()
    def study(self, net: nn.Module, clean: CleanData, generator: torch.Generator) -> None:
        """Score all channels of the unpruned network, then prune."""
        for name, scores in self.scores(net, clean, generator).items():
            self._pruned[name] = outliers(scores, self.u)
            prune(self._norms[name], self._pruned[name])

    def findings(self) -> dict[str, Any]:
        """The channels that were pruned, by layer."""
        count = sum(int(flags.sum()) for flags in self._pruned.values())
        total = sum(len(flags) for flags in self._pruned.values())
        rule = f"by more than {self.u:g} standard deviations (defense.u)"
        summary = f"None of the {total:,} channels is an outlier of its layer {rule}."
        if count:
            summary = f"Pruned {count:,} of {total:,} channels, which are outliers {rule}."
        return {
            "summary": summary,
            "pruned_channels": count,
            "scored_channels": total,
            "pruned": listed(self._pruned),
        }

    def shortfall(self) -> str | None:
        """``Nothing was pruned`` if no channel is an outlier."""
        scored = bool(self._pruned)
        pruned = any(bool(flags.any()) for flags in self._pruned.values())
        return NOTHING_PRUNED if scored and not pruned else None


class MaskDefense(Defense):
    r"""Train masks on the channels of BatchNorm; no weight of the network changes.

    The running statistics of BatchNorm do not change either.
    """

    batch_statistics: ClassVar[bool] = True
    """Whether the steps normalize by the batch instead of the running statistics."""

    def __init__(self) -> None:
        super().__init__()
        # Kept in containers so that `nn.Module` does not register them and save the weights twice.
        self._net: list[nn.Module] = []
        self._norms: dict[str, _BatchNorm] = {}
        self.masks: dict[str, ChannelMask] = {}
        self._momenta: dict[str, float | None] = {}
        self._frozen: list[nn.Parameter] = []
        self._found: dict[str, Any] = {}

    def prepare(self, net: nn.Module, generator: torch.Generator) -> None:
        """Freeze the network, and mask each BatchNorm layer that has a scale by ones."""
        norms = scaled_batchnorms(net, type(self).__name__)
        self.finish()
        self._net, self._norms, self._found = [net], norms, {}
        self._frozen = freeze(net.parameters())
        for name, norm in norms.items():
            self.masks[name] = self.make_mask(norm.weight)
            attach(norm, "weight", self.masks[name])
        self._momenta = {name: norm.momentum for name, norm in norms.items()}
        for norm in norms.values():
            # In training mode, normalize by the batch without updating the running statistics.
            norm.momentum = 0.0

    def make_mask(self, scale: Tensor) -> ChannelMask:
        """The parametrization of a scale ``(C,)``."""
        return ChannelMask(scale)

    @torch.no_grad()
    def after_step(self) -> None:
        r"""Project: :math:`m \in [\mu_l, 1]`, with :meth:`floor` for :math:`\mu_l`."""
        for number, mask in enumerate(self.masks.values(), start=1):
            mask.mask.clamp_(self.floor(number), 1)

    def floor(self, number: int) -> float:
        """The smallest mask of a layer; layers are numbered from 1, from input to output."""
        return 0.0

    def always_eval(self) -> Iterator[nn.Module]:
        """The whole network if the steps normalize by the running statistics."""
        if not self.batch_statistics:
            yield from self._net

    @torch.no_grad()
    def statistics(self) -> dict[str, Tensor]:
        """The mean and the minimum of all masks."""
        masks = torch.cat([mask.mask.float() for mask in self.masks.values()])
        return {"mask_mean": masks.mean(), "mask_min": masks.min()}

    @torch.no_grad()
    def cut(self, net: nn.Module, clean: CleanData, max_ca_drop: float) -> None:
        """Prune the largest set of channels that costs little accuracy.

        Channels with :math:`m_c < t` are pruned, for the largest t among 0.05, 0.10, ..., 0.90 that
        keeps the accuracy on held-out clean images within ``max_ca_drop`` of the unpruned
        network's. If every t costs more, nothing is pruned, and the findings contain the smallest
        cost.

        Args:
            net: The network, masked.
            clean: Its ``held_out`` decides; all of it if nothing is held out.
            max_ca_drop: In [0, 1].
        """
        judges = clean if clean.held_out is None else clean.held_out
        values = {name: mask.mask.detach().clone() for name, mask in self.masks.items()}
        self.set_masks({name: torch.ones_like(value) for name, value in values.items()})
        before = after = accuracy(net, judges)
        threshold, pruned = 0.0, {name: torch.zeros_like(v).bool() for name, v in values.items()}
        least = (-1.0, 0.0, 0)  # accuracy, threshold and channels of the least costly refused one
        for candidate in THRESHOLDS:
            flags = {name: value < candidate for name, value in values.items()}
            self.set_masks({name: (~flag).to(values[name].dtype) for name, flag in flags.items()})
            reached = accuracy(net, judges)
            if reached >= before - max_ca_drop - 1e-9:
                threshold, pruned, after = candidate, flags, reached
                break
            if reached >= least[0]:
                least = reached, candidate, sum(int(flag.sum()) for flag in flags.values())
        self.set_masks({name: (~flag).to(values[name].dtype) for name, flag in pruned.items()})
        count = sum(int(flag.sum()) for flag in pruned.values())
        total = sum(len(flag) for flag in pruned.values())
        if count:
            summary = (
                f"Pruned {count:,} of {total:,} channels (masks below {threshold:.2f}) for "
                f"{100 * (before - after):.1f} points of accuracy on {len(judges):,} held-out "
                "images."
            )
        elif threshold:
            summary = (
                f"None of the {total:,} masks is below the highest threshold, {threshold:.2f}."
            )
        else:
            summary = (
                f"The least costly threshold, {least[1]:.2f}, prunes {least[2]:,} of {total:,} "
                f"channels and costs {100 * (before - least[0]):.1f} points of accuracy on "
                f"{len(judges):,} held-out images; defense.max_pruning_ca_drop allows "
                f"{100 * max_ca_drop:.1f}."
            )
        self._found = {
            "summary": summary,
            "threshold": threshold,
            "pruned_channels": count,
            "masked_channels": total,
            "held_out_ca": [before, after],
            "pruned": listed(pruned),
        }

    @torch.no_grad()
    def set_masks(self, values: Mapping[str, Tensor]) -> None:
        """Set masks, by the name of their BatchNorm layer, to values of the same shape."""
        for name, value in values.items():
            self.masks[name].mask.copy_(value)

    def finish(self) -> None:
        """Fold the masks into the scales; undo the freezes."""
        for name, norm in self._norms.items():
            detach(norm, "weight")
            if name in self._momenta:
                norm.momentum = self._momenta[name]
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self.masks, self._momenta, self._frozen = {}, {}, []
        self._norms, self._net = {}, []

    def findings(self) -> dict[str, Any]:
        """The threshold, the pruned channels, and their cost in accuracy."""
        return dict(self._found)

    def shortfall(self) -> str | None:
        """``Nothing was pruned`` if :meth:`cut` found no threshold."""
        return NOTHING_PRUNED if self._found.get("pruned_channels") == 0 else None


def merged_moments(
    net: nn.Module, norms: Mapping[str, _BatchNorm], batches: Iterable[tuple[Tensor, Tensor]]
) -> dict[str, tuple[Tensor, Tensor]]:
    r"""Mean and variance of the inputs of each BatchNorm layer, per channel, over all images.

    .. math:: \mu_c = \mathrm{mean}(x_c), \quad \sigma_c^2 = \mathrm{mean}((x_c - \mu_c)^2)

    over images and positions. Mini-batches of any sizes are merged exactly, in float64.

    Args:
        net: The network, in evaluation mode.
        norms: Its BatchNorm layers by name.
        batches: ``(images, labels)``, normalized.

    Returns:
        By name, mean and variance, ``(C,)`` each, float64, on the CPU, without layers that were not
        reached.
    """
    merged: dict[str, tuple[int, Tensor, Tensor]] = {}

    def update(name: str, values: Tensor) -> None:
        count = values.shape[1]
        variance, mean = (m.double().cpu() for m in torch.var_mean(values, dim=1, correction=0))
        if name in merged:
            seen, old_mean, old_variance = merged[name]
            share = count / (seen + count)
            shift = mean - old_mean
            mean = old_mean + share * shift
            variance = (
                (1 - share) * old_variance + share * variance + share * (1 - share) * shift**2
            )
            count += seen
        merged[name] = count, mean, variance

    watch_inputs(net, norms, batches, update)
    return {name: (mean, variance) for name, (_, mean, variance) in merged.items()}


@torch.no_grad()
def watch_inputs(
    net: nn.Module,
    norms: Mapping[str, _BatchNorm],
    batches: Iterable[tuple[Tensor, Tensor]],
    look: Any,
) -> None:
    """Run a network, and call ``look(name, values)`` with each layer's inputs, ``(C, n)`` float32.

    Args:
        net: The network.
        norms: The layers to watch, by name.
        batches: ``(images, labels)``.
        look: Called for each layer and mini-batch; n counts images and positions.
    """
    with ExitStack() as hooks:
        for name, norm in norms.items():

            def hook(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                look(name, inputs[0].detach().transpose(0, 1).flatten(1).float())

            hooks.enter_context(norm.register_forward_pre_hook(hook))
        for images, _ in batches:
            net(images)
