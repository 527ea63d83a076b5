"""Fisher information guided purification (FIP): tune towards a smooth minimum.

Example:
    ``python purify.py attack=blended defense=fip``
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from fst_lightning.defenses.common.clean_data import CleanData
from fst_lightning.defenses.common.defense import Defense, freeze
from fst_lightning.defenses.common.whole_set import batchnorms, keep_modes, twice_differentiable
from fst_lightning.models import find_head
from fst_lightning.validate import check_choice, check_number

Scope = Literal["all", "head"]


class FisherPurification(Defense):
    r"""Tune with penalties on the trace of the Fisher matrix and on the distance moved.

    *How it works.* A backdoored network lies in a sharper minimum of the loss than a clean one. The
    trace of the Fisher matrix, the mean squared length of the gradients of the network's
    predictions, measures this sharpness. The defense tunes on clean images and penalizes the trace,
    so that the network moves to a smoother minimum, where the backdoor is lost. A second penalty
    keeps weights near their old values if clean predictions depend on them.

    .. math:: \mathrm{CE}(f(x), y) + \eta_F \mathrm{Tr}(F) +
        \frac{\eta_r}{2} \sum_j \bar F_j (\theta_j - \bar\theta_j)^2, \qquad
        \mathrm{Tr}(F) = \frac1n \sum_i \|\nabla_\theta \log p_\theta(\hat y_i | x_i)\|_2^2

    with the network :math:`f`, its weights :math:`\theta`, clean images :math:`x` with labels
    :math:`y`, the weights :math:`\eta_F` and :math:`\eta_r` of the penalties, labels
    :math:`\hat y_i` drawn from the network's prediction, the original weights :math:`\bar\theta`
    and the diagonal :math:`\bar F` of their Fisher matrix on all clean images.

    With ``fast``, each convolution and linear layer becomes
    :math:`W = W_0 + U \,\mathrm{diag}(\Delta\sigma)\, V^\top` with the singular vectors :math:`U`
    and :math:`V` of its weight :math:`W_0`, and only the changes :math:`\Delta\sigma` of the
    singular values are trained. After each step they are projected to
    :math:`\sigma + \Delta\sigma \ge 0`, because no singular value is negative. At the end they are
    folded into :math:`W`.

    Args:
        eta_f: Weight :math:`\eta_F` of the trace, 0 or more.
        eta_r: Weight :math:`\eta_r` of the distance, 0 or more.
        gap: The trace is added in each ``gap``-th step, 1 or more.
        trace_images: Images of the mini-batch for the trace at most, 1 or more; each keeps its own
            gradient in memory.
        scope: The weights :math:`\theta` of both penalties: ``all`` trained ones, or those of the
            ``head``, which costs little.
        fast: Whether to train only the singular values.
        head: Dotted name of the linear head for ``scope: head``; None finds it.

    Shape:
        - images: ``(N, C, H, W)`` float, normalized.
        - labels: ``(N,)`` int64.

    Raises:
        ValueError: If an argument is out of its range, or no weights are trained.

    Needs:
        Clean images with true labels. ``scope=head`` needs a linear head.

    Cost:
        Before the tuning, one gradient per clean image. Every ``gap``-th step adds one gradient for
        each of ``trace_images`` images and a derivative through them. ``fast`` adds one singular
        value decomposition per layer.

    When it fails:
        At a low poison ratio, few epochs leave most of a backdoor. If the attacker trained the
        network towards a flat minimum, its sharpness says nothing about the backdoor.

    Note:
        The trace is exact for the drawn labels, with one gradient per image and a derivative
        through it; the public code multiplies the gradient by random vectors instead. BatchNorm
        normalizes by the batch in the trace, as in the cross-entropy, but these statistics are
        constants there: running statistics lag behind the weights, and the trace with them
        diverges.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        >>> defense = FisherPurification(fast=True)
        >>> defense.prepare(net, torch.Generator())
        >>> [(name, len(value)) for name, value in net.named_parameters() if value.requires_grad]
        [('1.parametrizations.weight.0.change', 2)]
        >>> defense.finish()
        >>> [name for name, _ in net.named_parameters()]
        ['1.weight', '1.bias']

    References:
        Karim, Al Arafat, Rakin, Guo and Rahnavard, "Fisher information guided purification against
        backdoor attacks", ACM CCS 2024, arXiv 2409.00863.

    See Also:
        - :class:`~fst_lightning.defenses.NaturalGradientTuning`: its predecessor, for the head
          only.
        - :class:`~fst_lightning.defenses.FineTuningSAM`: flat minima by moving the weights.
    """

    fisher_diagonal: Tensor
    """:math:`\\bar F` as a vector; empty before :meth:`study`."""

    anchor: Tensor
    """:math:`\\bar\\theta` as a vector; empty before :meth:`prepare`."""

    step: Tensor
    """Number of computed losses, a scalar."""

    def __init__(
        self,
        eta_f: float = 1e-4,
        eta_r: float = 1.0,
        gap: int = 5,
        trace_images: int = 16,
        scope: Scope = "all",
        fast: bool = False,
        head: str | None = None,
    ) -> None:
        super().__init__()
        check_number("eta_f", eta_f)
        check_number("eta_r", eta_r)
        check_number("gap", gap, low=1, whole=True)
        check_number("trace_images", trace_images, low=1, whole=True)
        check_choice("scope", scope, Scope)
        self.eta_f = eta_f
        self.eta_r = eta_r
        self.gap = gap
        self.trace_images = trace_images
        self.scope = scope
        self.fast = fast
        self.head = head
        self.register_buffer("fisher_diagonal", torch.empty(0))
        self.register_buffer("anchor", torch.empty(0))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self._frozen: list[nn.Parameter] = []
        self._split: list[nn.Linear | _ConvNd] = []
        self._parameters_by_name: dict[str, nn.Parameter] = {}
        self._trace: Tensor | None = None

    @property
    def needs_head(self) -> bool:
        """Whether the penalties are on the head only."""
        return self.scope == "head"

    def prepare(self, net: nn.Module, generator: torch.Generator) -> None:
        """Copy the original weights, and decompose them if ``fast`` is set."""
        self.finish()
        head = find_head(net, self.head)[1] if self.scope == "head" else None
        if self.fast:
            self._decompose(net)
        chosen = None if head is None else {id(parameter) for parameter in head.parameters()}
        self._parameters_by_name = {
            name: parameter
            for name, parameter in net.named_parameters()
            if parameter.requires_grad and (chosen is None or id(parameter) in chosen)
        }
        if not self._parameters_by_name:
            raise ValueError(
                f"Expected weights to train in the {'head' if chosen else 'network'}, but all of "
                "them are frozen."
            )
        self.anchor = self._vector().detach().clone()
        self.fisher_diagonal, self._trace = torch.empty(0), None
        self.step = torch.zeros_like(self.step)

    def study(self, net: nn.Module, clean: CleanData, generator: torch.Generator) -> None:
        """Estimate the diagonal of the Fisher matrix on all clean images."""
        if self.eta_r == 0:
            return
        total = torch.zeros_like(self.anchor)
        for images, _ in clean.batches(self.trace_images):
            with torch.no_grad():
                answers = net(images).float().softmax(1).cpu()
            drawn = torch.multinomial(answers, 1, generator=generator)[:, 0].to(images.device)
            gradients = per_sample_gradients(net, self._parameters_by_name, images, drawn)
            squares = [values.detach().square().sum(0).flatten() for values in gradients.values()]
            total += torch.cat(squares)
        self.fisher_diagonal = total / len(clean)

    def loss(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """The cross-entropy, plus the trace in each ``gap``-th step."""
        with batch_statistics(net) as statistics:
            total = functional.cross_entropy(net(images), labels)
        if self.eta_f and int(self.step) % self.gap == 0:
            few = images[: self.trace_images]
            trace = fisher_trace(net, self._parameters_by_name, few, statistics)
            self._trace = trace.detach()
            total = total + self.eta_f * trace
        self.step += 1
        return total

    def penalty(self) -> Tensor | None:
        r""":math:`\frac{\eta_r}{2} \sum_j \bar F_j (\theta_j - \bar\theta_j)^2`, a scalar."""
        if self.eta_r == 0 or not self.fisher_diagonal.numel():
            return None
        moved = self._vector() - self.anchor
        return self.eta_r / 2 * (self.fisher_diagonal * moved.square()).sum()

    @torch.no_grad()
    def after_step(self) -> None:
        """Keep the singular values of the fast variant at 0 or more."""
        for part in (part for layer in self._split for part in layer.modules()):
            if isinstance(part, SingularValues):
                part.project()

    def _vector(self) -> Tensor:
        return torch.cat([value.flatten() for value in self._parameters_by_name.values()])

    def _decompose(self, net: nn.Module) -> None:
        layers = [
            module
            for module in net.modules()
            if isinstance(module, nn.Linear | _ConvNd)
            and module.weight.requires_grad
            and not parametrize.is_parametrized(module)
        ]
        if not layers:
            raise ValueError(
                "Expected convolutions or linear layers to train the singular values of, but "
                f"{type(net).__name__} has none. Pass fast=False."
            )
        self._frozen = freeze(net.parameters())
        for layer in layers:
            change = SingularValues(layer.weight)
            parametrize.register_parametrization(layer, "weight", change)
            self._split.append(layer)

    @torch.no_grad()
    def finish(self) -> None:
        """Fold the singular values into the weights, and undo the freezes."""
        for layer in self._split:
            names = list(layer._parameters)
            folded = layer.weight.detach().clone()
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
            layer.weight.copy_(folded)
            for name in ["weight", *(name for name in names if name != "weight")]:
                layer._parameters[name] = layer._parameters.pop(name)
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self._split, self._frozen, self._parameters_by_name = [], [], {}

    def statistics(self) -> dict[str, Tensor]:
        """The last computed trace of the Fisher matrix."""
        return {} if self._trace is None else {"fisher_trace": self._trace}


class SingularValues(nn.Module):
    r"""A parametrization :math:`W_0 \mapsto W_0 + U \,\mathrm{diag}(\Delta\sigma)\, V^\top`.

    Args:
        weight: Weight :math:`W_0`, ``(K, ...)``, as a matrix of K rows.

    Example:
        >>> layer = nn.Linear(3, 2, bias=False)
        >>> values = torch.linalg.svdvals(layer.weight.detach())
        >>> split = SingularValues(layer.weight)
        >>> with torch.no_grad(): _ = split.change.fill_(1.0)
        >>> torch.allclose(torch.linalg.svdvals(split(layer.weight)), values + 1)
        True
    """

    left: Tensor
    values: Tensor
    right: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        matrix = weight.detach().flatten(1).float()
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        self.register_buffer("left", left.to(weight.dtype))
        self.register_buffer("values", values.to(weight.dtype))
        self.register_buffer("right", right.to(weight.dtype))
        self.change = nn.Parameter(torch.zeros_like(values).to(weight.dtype))

    def forward(self, weight: Tensor) -> Tensor:
        """Change the singular values."""
        return weight + ((self.left * self.change) @ self.right).view(weight.shape)

    @torch.no_grad()
    def project(self) -> None:
        r"""Make :math:`\sigma + \Delta\sigma` 0 or more."""
        self.change.copy_(torch.maximum(self.change, -self.values))


@contextmanager
def batch_statistics(net: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collect the statistics by which BatchNorm layers normalize in training mode, by buffer name.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm1d(2, affine=False))
        >>> with batch_statistics(net) as found:
        ...     _ = net(torch.tensor([[1.0, 0.0], [3.0, 4.0]]))
        >>> {name: values.tolist() for name, values in found.items()}
        {'0.running_mean': [2.0, 2.0], '0.running_var': [1.0, 4.0]}
    """
    found: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for name, norm in batchnorms(net).items():
            if norm.training and norm.track_running_stats:

                def keep(norm: Any, inputs: tuple[Tensor, ...], name: str = name) -> None:
                    channels = precise(inputs[0].detach().transpose(0, 1).flatten(1))
                    variance, mean = torch.var_mean(channels, dim=1, correction=0)
                    found[f"{name}.running_mean"] = mean.to(norm.running_mean.dtype)
                    found[f"{name}.running_var"] = variance.to(norm.running_var.dtype)

                hooks.enter_context(norm.register_forward_pre_hook(keep))
        yield found


def fisher_trace(
    net: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    images: Tensor,
    constants: Mapping[str, Tensor] | None = None,
) -> Tensor:
    r"""The trace :math:`\frac1n \sum_i \|\nabla_\theta \log p(\hat y_i | x_i)\|^2`, differentiable.

    Args:
        net: The network; evaluated in evaluation mode.
        parameters: The weights :math:`\theta`, by their names in the network.
        images: ``(n, C, H, W)``, normalized; labels are drawn with the global generator.
        constants: Tensors that replace those of the network, by name.
    """
    with keep_modes(net), torch.no_grad():
        net.eval()
        answers = functional_call(net, dict(constants or {}), (images,)).float().softmax(1)
        drawn = torch.multinomial(answers, 1)[:, 0]
    gradients = per_sample_gradients(net, parameters, images, drawn, constants)
    norms = [precise(values).square().flatten(1).sum(1) for values in gradients.values()]
    return torch.stack(norms).sum(0).mean()


def per_sample_gradients(
    net: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    images: Tensor,
    labels: Tensor,
    constants: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The gradient of the cross-entropy of each single image, in evaluation mode.

    Args:
        net: The network.
        parameters: The weights to differentiate by, by their names in the network.
        images: ``(n, C, H, W)``, normalized.
        labels: ``(n,)`` int64.
        constants: Tensors that replace those of the network, by name.

    Returns:
        By name, ``(n, ...)``; differentiable once more.

    Example:
        >>> net = nn.Linear(3, 2)
        >>> given = per_sample_gradients(
        ...     net, dict(net.named_parameters()), torch.rand(5, 3), torch.zeros(5).long()
        ... )
        >>> given["weight"].shape
        torch.Size([5, 2, 3])
    """

    def objective(chosen: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(net, {**(constants or {}), **chosen}, (image[None],))
        return functional.cross_entropy(precise(logits), label[None])

    # Autocast does not support second derivatives.
    precise_pass = torch.autocast(images.device.type, enabled=False)
    with keep_modes(net), precise_pass, twice_differentiable():
        net.eval()
        gradients: dict[str, Tensor] = vmap(grad(objective), in_dims=(None, 0, 0))(
            dict(parameters), images, labels
        )
    return gradients


def precise(values: Tensor) -> Tensor:
    """In float32 or wider, because squares underflow in half precision."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
