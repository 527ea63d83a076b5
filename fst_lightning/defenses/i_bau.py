"""I-BAU: unlearn the one perturbation that fools all images, with the implicit hypergradient.

Zeng, Chen, Park, Mao, Jin and Jia, "Adversarial unlearning of backdoors via implicit
hypergradient", ICLR 2022, arXiv 2110.03735.

Example:
    ``python purify.py attack=blended defense=i_bau``
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, repeat

import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.defenses.common.channel_masks import check_number
from fst_lightning.defenses.common.clean_data import CleanData
from fst_lightning.defenses.common.defense import Defense
from fst_lightning.defenses.common.whole_set import keep_modes, twice_differentiable


class ImplicitUnlearning(Defense):
    r"""Minimise the loss under the worst universal perturbation, one for all images.

    .. math:: \min_\theta \max_{\|\delta\|_2 \le C}
        \frac1n \sum_i \mathrm{CE}(f(x_i + s_i \delta), y_i), \qquad s_i \in \{0, 1\}

    Before every epoch :math:`\delta` is searched anew on all the clean images, from zero, by
    gradient steps on the ball, each of one length; there all :math:`s_i = 1`. Every step then
    follows the total derivative on its batch, which knows that :math:`\delta` would move along: see
    :func:`implicit_loss`. In the paper every image of it is perturbed, in its public code one of a
    hundred. The whole network is in evaluation mode, BatchNorm's running statistics stay as they
    are.

    Args:
        share: of the images of a batch that are perturbed, :math:`s_i = 1`, in (0, 1], at least
            one image. The others keep the accuracy on clean images.
        radius: C over all pixels and channels, in units of [0, 1], greater than 0; 10 is 0.18 a
            value in an image of 3x32x32.
        search_steps: gradient steps of the search, one a batch, 0 or more.
        search_lr: length of such a step, as a share of the radius, greater than 0.
        search_batch_size: images a step of the search, 1 or more.
        fixed_point_iterations: K, for the hypergradient, 0 or more.
        fixed_point_step: :math:`\alpha` of the map whose fixed point the worst perturbation is,
            greater than 0.

    Raises:
        ValueError: for an argument out of its range.

    Example:
        >>> defense = ImplicitUnlearning(radius=1.0, search_steps=3)
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        >>> clean = CleanData(torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 0, 1]))
        >>> defense.begin_epoch(net, clean, 0, torch.Generator())
        >>> bool(defense.delta.norm() <= 1.0001)
        True
    """

    delta: Tensor
    """The perturbation of this epoch, ``(1, C, H, W)`` in units of [0, 1]; empty before it."""

    unit: Tensor
    """One unit of [0, 1] in normalised units, ``(1, C, 1, 1)``; ones before it is known."""

    def __init__(
        self,
        share: float = 0.5,
        radius: float = 10.0,
        search_steps: int = 20,
        search_lr: float = 0.25,
        search_batch_size: int = 128,
        fixed_point_iterations: int = 5,
        fixed_point_step: float = 0.1,
    ) -> None:
        super().__init__()
        check_number("share", share, high=1, low_open=True)
        check_number("radius", radius, low_open=True)
        check_number("search_steps", search_steps, whole=True)
        check_number("search_lr", search_lr, low_open=True)
        check_number("search_batch_size", search_batch_size, low=1, whole=True)
        check_number("fixed_point_iterations", fixed_point_iterations, whole=True)
        check_number("fixed_point_step", fixed_point_step, low_open=True)
        self.share = share
        self.radius = radius
        self.search_steps = search_steps
        self.search_lr = search_lr
        self.search_batch_size = search_batch_size
        self.fixed_point_iterations = fixed_point_iterations
        self.fixed_point_step = fixed_point_step
        self.register_buffer("delta", torch.empty(0))
        self.register_buffer("unit", torch.ones(1, 1, 1, 1))
        self._net: list[nn.Module] = []

    def prepare(self, net: nn.Module, generator: torch.Generator) -> None:
        """Start anew."""
        self._net = [net]
        self.delta = torch.empty(0)

    def begin_epoch(
        self, net: nn.Module, clean: CleanData, epoch: int, generator: torch.Generator
    ) -> None:
        """Search the perturbation that fools the network as it is now."""
        self.unit = clean.unit.clone()
        batches = chain.from_iterable(
            clean.batches(self.search_batch_size, generator) for _ in repeat(None)
        )
        delta = torch.zeros_like(clean.normalise(clean.images[:1]))
        with keep_modes(net):
            net.eval()
            for _ in range(self.search_steps):
                images, labels = next(batches)
                delta.requires_grad_()
                loss = functional.cross_entropy(net(images + delta * self.unit), labels)
                (slope,) = torch.autograd.grad(loss, delta)
                with torch.no_grad():
                    direction = functional.normalize(slope.flatten(), dim=0).view_as(slope)
                    delta = project(delta + self.search_lr * self.radius * direction, self.radius)
        self.delta = delta.detach()

    def loss(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """The loss on the batch, perturbed in part; its gradient is the total derivative."""
        delta = self.delta if self.delta.numel() else torch.zeros_like(images[:1])
        # Batches come shuffled: the first images are any images.
        scale = self.unit.repeat(len(images), 1, 1, 1)
        scale[max(1, round(self.share * len(images))) :] = 0
        return implicit_loss(
            lambda moved: functional.cross_entropy(net(images + moved * scale), labels),
            delta,
            radius=self.radius,
            step=self.fixed_point_step,
            iterations=self.fixed_point_iterations,
        )

    def finish(self) -> None:
        """Forget the network."""
        self._net = []

    def always_eval(self) -> Iterator[nn.Module]:
        """The whole network."""
        yield from self._net

    def statistics(self) -> dict[str, Tensor]:
        """The norm of the perturbation, in units of [0, 1]."""
        return {"delta_norm": self.delta.float().norm()}


def implicit_loss(
    objective: Callable[[Tensor], Tensor],
    delta: Tensor,
    *,
    radius: float,
    step: float,
    iterations: int,
) -> Tensor:
    r"""A scalar :math:`H(\delta, \theta)` whose gradient in :math:`\theta` is the total derivative.

    At the maximum :math:`\delta^*(\theta)` of H on the ball, the fixed point of
    :math:`\Phi(\delta, \theta) = \Pi_C(\delta + \alpha \nabla_\delta H)`,

    .. math:: \frac{\mathrm d H}{\mathrm d \theta} = \partial_\theta H
        + \partial_\theta \Phi^\top u, \qquad
        u = (I - \partial_\delta \Phi^\top)^{-1} \partial_\delta H

    and u is the limit of :math:`u \leftarrow \partial_\delta H + \partial_\delta \Phi^\top u`. The
    value returned is H plus :math:`\langle \Phi, u \rangle - \langle \Phi, u \rangle`, where only
    the first product has a gradient.

    Args:
        objective: H as a function of :math:`\delta`, with a graph to :math:`\theta`.
        delta: about the maximum, of any shape.
        radius: C, greater than 0.
        step: :math:`\alpha`, greater than 0.
        iterations: of u, 0 or more, from :math:`\partial_\delta H` on.

    Example:
        >>> theta = torch.tensor([2.0], requires_grad=True)  # H is largest at delta = theta
        >>> loss = implicit_loss(
        ...     lambda d: (theta * d - d * d / 2).sum(),
        ...     torch.tensor([2.0]), radius=9.0, step=0.5, iterations=20,
        ... )
        >>> loss.backward(); theta.grad.tolist()  # of theta * theta / 2
        [2.0]
    """
    delta = delta.detach().requires_grad_()
    with twice_differentiable():
        value = objective(delta)
    (slope,) = torch.autograd.grad(value, delta, create_graph=True)
    mapped = project(delta + step * slope, radius)
    adjoint = direct = slope.detach()
    for _ in range(iterations):
        (pulled,) = torch.autograd.grad(mapped, delta, adjoint, retain_graph=True)
        adjoint = direct + pulled
    product = (mapped * adjoint).sum()
    total: Tensor = value + product - product.detach()
    return total


def project(delta: Tensor, radius: float) -> Tensor:
    r"""The nearest point of the ball :math:`\|\delta\|_2 \le C`, with its gradient.

    Example:
        >>> project(torch.tensor([3.0, 4.0]), 1.0)
        tensor([0.6000, 0.8000])
    """
    norm = delta.detach().norm()
    if float(norm) <= radius:
        return delta
    inside: Tensor = delta * (radius / delta.norm())
    return inside
