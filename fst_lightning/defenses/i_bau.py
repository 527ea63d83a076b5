"""Implicit backdoor adversarial unlearning (I-BAU): unlearn the perturbation that fools all images.

Example:
    ``python purify.py attack=blended defense=i_bau``
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, repeat
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.defenses.common.clean_data import CleanData
from fst_lightning.defenses.common.defense import Defense
from fst_lightning.defenses.common.folded_batchnorm import FoldedBatchNorm
from fst_lightning.defenses.common.whole_set import keep_modes, twice_differentiable
from fst_lightning.validate import check_number


class ImplicitUnlearning(Defense):
    r"""Minimize the loss under the worst universal perturbation, one for all images.

    *How it works.* A trigger is one fixed change that misleads the network on any image. Before
    each epoch the defense searches the worst such change on all clean images. It then tunes the
    network to classify images correctly although they carry it. A change that is fixed during a
    step would ignore that the worst change depends on the weights, so that each step follows the
    total derivative, which includes this dependence (the implicit hypergradient).

    .. math:: \min_\theta \max_{\|\delta\|_2 \le C}
        \frac1n \sum_i \mathrm{CE}(f_\theta(x_i + s_i \delta), y_i), \qquad s_i \in \{0, 1\}

    with the perturbation :math:`\delta` in a ball of radius :math:`C`. The search starts from zero
    and takes gradient steps of equal length on the ball, with all :math:`s_i = 1`.
    :func:`implicit_loss` has the formula of the total derivative.

    Args:
        share: Share of the images in a mini-batch that are perturbed (:math:`s_i = 1`), greater
            than 0 and at most 1; at least one image. The other images keep the clean accuracy.
        radius: Bound :math:`C` over all pixels and channels, in units of [0, 1], greater than 0; 10
            is 0.18 per value in an image of 3 x 32 x 32.
        search_steps: Gradient steps of the search, one mini-batch each, 0 or more.
        search_lr: Length of such a step, as a share of the radius, greater than 0.
        search_batch_size: Images per step of the search, 1 or more.
        fixed_point_iterations: Fixed-point iterations for the hypergradient, 0 or more.
        fixed_point_step: Step :math:`\alpha` of the map whose fixed point is the worst
            perturbation, greater than 0.

    Shape:
        - images: ``(N, C, H, W)`` float, normalized.
        - labels: ``(N,)`` int64.

    Raises:
        ValueError: If an argument is out of its range.

    Needs:
        Clean images with true labels.

    Cost:
        ``search_steps`` steps before each epoch. Each training step adds ``fixed_point_iterations``
        products with second derivatives.

    When it fails:
        A universal perturbation resembles triggers that are the same for all images;
        sample-specific triggers are covered less well. Many epochs or a large ``radius`` cost much
        clean accuracy, because the loss does not settle.

    Note:
        The paper perturbs all images of a mini-batch, its public code one in a hundred; ``share``
        sets this. The public code leaves out the projection to the ball and computes the
        hypergradient on its first mini-batch only; here both follow the paper. The network stays in
        evaluation mode, so that BatchNorm's running statistics do not change.

    Example:
        >>> defense = ImplicitUnlearning(radius=1.0, search_steps=3)
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        >>> clean = CleanData(torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 0, 1]))
        >>> defense.begin_epoch(net, clean, 0, torch.Generator())
        >>> bool(defense.delta.norm() <= 1.0001)
        True

    References:
        Zeng, Chen, Park, Mao, Jin and Jia, "Adversarial unlearning of backdoors via implicit
        hypergradient", ICLR 2022, arXiv 2110.03735.

    See Also:
        - :class:`~fst_lightning.defenses.SharedAdversarialUnlearning`: one perturbation per image.
        - :class:`~fst_lightning.detectors.UniversalShift`: looks for a universal direction in
          feature space.
    """

    searches_in_bfloat16: ClassVar[bool] = True

    delta: Tensor
    """The perturbation of this epoch, ``(1, C, H, W)`` in units of [0, 1]; empty before it."""

    unit: Tensor
    """One unit of [0, 1] in normalized units, ``(1, C, 1, 1)``; ones before it is known."""

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
        self._folded = FoldedBatchNorm()

    def prepare(self, net: nn.Module, generator: torch.Generator) -> None:
        """Discard the perturbation of an earlier run."""
        self._net = [net]
        self._folded = FoldedBatchNorm()
        self.delta = torch.empty(0)

    def begin_epoch(
        self, net: nn.Module, clean: CleanData, epoch: int, generator: torch.Generator
    ) -> None:
        """Search the perturbation that fools the current network."""
        self.unit = clean.unit.clone()
        batches = chain.from_iterable(
            clean.batches(self.search_batch_size, generator) for _ in repeat(None)
        )
        delta = torch.zeros_like(clean.normalize(clean.images[:1]))
        with keep_modes(net), self._folded.of(net, delta):
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
        """The loss on the partly perturbed mini-batch; its gradient is the total derivative."""
        count = len(images)
        # Mini-batches are shuffled, so that the first images are a random sample.
        moved = max(1, round(self.share * count))
        delta = self.delta if self.delta.numel() else torch.zeros_like(images[:1])

        def part(images: Tensor, labels: Tensor) -> Tensor:
            return functional.cross_entropy(net(images), labels, reduction="sum") / count

        with self._folded.of(net, images):
            total = implicit_loss(
                lambda delta: part(images[:moved] + delta * self.unit, labels[:moved]),
                delta,
                radius=self.radius,
                step=self.fixed_point_step,
                iterations=self.fixed_point_iterations,
            )
            # The other images do not depend on the perturbation: plain passes suffice.
            return total + part(images[moved:], labels[moved:]) if moved < count else total

    def finish(self) -> None:
        """Drop the references to the network."""
        self._net = []
        self._folded = FoldedBatchNorm()

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

    The maximum :math:`\delta^*(\theta)` of :math:`H` on the ball is the fixed point of
    :math:`\Phi(\delta, \theta) = \Pi_C(\delta + \alpha \nabla_\delta H)`. Therefore

    .. math:: \frac{\mathrm d H}{\mathrm d \theta} = \partial_\theta H
        + \partial_\theta \Phi^\top u, \qquad
        u = (I - \partial_\delta \Phi^\top)^{-1} \partial_\delta H

    and :math:`u` is the limit of
    :math:`u \leftarrow \partial_\delta H + \partial_\delta \Phi^\top u`. The function returns
    :math:`H` plus :math:`\langle \Phi, u \rangle - \langle \Phi, u \rangle`, where only the first
    product has a gradient.

    Args:
        objective: :math:`H` as a function of :math:`\delta`, with a graph to :math:`\theta`.
        delta: A point near the maximum, of any shape.
        radius: Radius :math:`C` of the ball, greater than 0.
        step: Step :math:`\alpha`, greater than 0.
        iterations: Iterations for :math:`u`, 0 or more, starting from :math:`\partial_\delta H`.

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
    r"""Project to the ball :math:`\|\delta\|_2 \le C`, with a gradient.

    Example:
        >>> project(torch.tensor([3.0, 4.0]), 1.0)
        tensor([0.6000, 0.8000])
    """
    norm = delta.detach().norm()
    if float(norm) <= radius:
        return delta
    inside: Tensor = delta * (radius / delta.norm())
    return inside
