"""Trigger inversion: for every class the smallest patch that turns all images into it.

Wang, Yao, Shan, Li, Viswanath, Zheng and Zhao, "Neural Cleanse: Identifying and mitigating backdoor
attacks in neural networks", IEEE S&P 2019.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.defenses.common.clean_data import LabeledImages
from fst_lightning.defenses.common.folded_batchnorm import FoldedBatchNorm
from fst_lightning.defenses.common.pixel_range import PixelRange
from fst_lightning.defenses.common.whole_set import keep_modes, seeded
from fst_lightning.validate import check_number

_TO_SIGMA = 1.4826
"""The standard deviation of normal numbers in units of their median absolute deviation."""

_LEAST_SPREAD = 0.01
"""The least standard deviation that is believed, as a share of the median."""


@dataclass(frozen=True, eq=False)
class Triggers:
    r"""A recovered trigger for every class: :math:`T_t(x) = (1 - m_t) \odot x + m_t \odot p_t`.

    Args:
        masks: :math:`m`, ``(C, 1, H, W)`` in [0, 1].
        patterns: :math:`p`, ``(C, channels, H, W)`` in [0, 1]: black to white.
        rates: ``(C,)``, the share of the images that the trigger turns into its class.
    """

    masks: Tensor
    patterns: Tensor
    rates: Tensor

    @property
    def norms(self) -> Tensor:
        r"""The size of every mask, :math:`\|m_t\|_1`, ``(C,)``: how many pixels it takes."""
        return self.masks.sum((1, 2, 3))

    @property
    def index(self) -> Tensor:
        """The anomaly index of every class, ``(C,)``: see :func:`anomaly_index`."""
        return anomaly_index(self.norms)

    def flagged(self, threshold: float = 2.0, success: float = 0.9) -> Tensor:
        """The classes that are suspicious, ``(n,)``: index above the threshold, and it works.

        Args:
            threshold: of the anomaly index.
            success: the least rate; a small mask that does nothing is no trigger.
        """
        return ((self.index > threshold) & self.working(success)).nonzero()[:, 0]

    def working(self, success: float = 0.9) -> Tensor:
        """Which triggers work, ``(C,)`` bool.

        Args:
            success: the least share of images that a trigger turns into its class.
        """
        return self.rates >= success


def anomaly_index(norms: Tensor) -> Tensor:
    r"""How far below the median each norm is, in robust standard deviations.

    .. math:: a_t = \frac{\mathrm{med}(n) - n_t}{1.4826\,\mathrm{med}_s |n_s - \mathrm{med}(n)|}

    Above 2 it is an outlier among normal numbers (5 % in both directions). The paper divides the
    absolute deviation and keeps the small norms; here the sign says it. Where more than half of
    the norms are equal the denominator is zero: it is at least 1 % of the median.

    Args:
        norms: ``(C,)``, 0 or more.

    Example:
        >>> anomaly_index(torch.tensor([100.0] * 9 + [10.0])).tolist()
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 90.0]
    """
    norms = norms.double()
    median = norms.quantile(0.5)
    spread = _TO_SIGMA * (norms - median).abs().quantile(0.5)
    return ((median - norms) / spread.clamp_min(_LEAST_SPREAD * float(median) + 1e-12)).float()


def invert_triggers(
    net: nn.Module,
    clean: LabeledImages,
    generator: torch.Generator,
    *,
    rounds: int = 15,
    steps: int = 10,
    batch_size: int = 16,
    lr: float = 0.2,
    cost: float = 1e-3,
    cost_factor: float = 2.0,
    patience: int = 2,
    stop_after: int = 8,
    success: float = 0.98,
    classes_at_once: int = 32,
    restarts: int = 3,
) -> Triggers:
    r"""Recover a trigger for every class from a network and a few clean images.

    .. math:: \min_{m, p}\; \mathrm{CE}(f((1 - m) \odot x + m \odot p), t) + \lambda \|m\|_1

    for all classes t in one batch, by Adam with :math:`\beta = (0.5, 0.9)` on logits of m and p.
    After every round, where enough images were turned into t for some rounds :math:`\lambda` is
    raised, where too few it is lowered; kept is the smallest mask that was good enough, or else the
    last one. A class is done when its mask has not shrunk by 1 % for some rounds. The network is
    left as it is.

    The size of a mask depends on the random start, and one unlucky start can hide a class or make
    it stand out. So the search is repeated from several starts, and the smallest mask of each class
    that was good enough is kept.

    Args:
        net: the network, on the device of the images.
        clean: clean images; their labels are not used.
        generator: a CPU generator, the only source of random numbers.
        rounds: at most so many, 1 or more.
        steps: of Adam in a round, 1 or more.
        batch_size: images a step, 1 or more; each is stamped with the trigger of every class.
        lr: of Adam, greater than 0.
        cost: :math:`\lambda` at the start, greater than 0.
        cost_factor: what it is multiplied with or divided by, greater than 1.
        patience: rounds in a row before it changes, 1 or more.
        stop_after: rounds without a smaller mask before a class is done, 1 or more.
        success: the share of images that have to be turned, in (0, 1].
        classes_at_once: so many classes share a batch, 1 or more: what memory allows.
        restarts: searches from different random starts, 1 or more; the paper has one. The first
            of several is the one that a single search makes.

    Returns:
        Masks, patterns and rates, float32 on the device of the images.

    Raises:
        ValueError: for an argument out of its range.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
        >>> clean = LabeledImages(torch.rand(8, 3, 2, 2), torch.zeros(8, dtype=torch.int64))
        >>> found = invert_triggers(net, clean, torch.Generator().manual_seed(0), rounds=2, steps=2)
        >>> found.masks.shape, found.patterns.shape, found.index.shape
        (torch.Size([3, 1, 2, 2]), torch.Size([3, 3, 2, 2]), torch.Size([3]))
    """
    check_number("rounds", rounds, low=1, whole=True)
    check_number("steps", steps, low=1, whole=True)
    check_number("batch_size", batch_size, low=1, whole=True)
    check_number("lr", lr, low_open=True)
    check_number("cost", cost, low_open=True)
    check_number("cost_factor", cost_factor, low=1, low_open=True)
    check_number("patience", patience, low=1, whole=True)
    check_number("stop_after", stop_after, low=1, whole=True)
    check_number("success", success, low_open=True, high=1)
    check_number("classes_at_once", classes_at_once, low=1, whole=True)
    check_number("restarts", restarts, low=1, whole=True)
    images, _ = next(clean.batches(2))
    with (
        keep_modes(net),
        seeded(generator, clean.device),
        FoldedBatchNorm().of(net, images),
    ):
        net.eval()
        with torch.no_grad():
            num_classes = net(images).shape[1]
        every = torch.arange(num_classes, device=clean.device)

        def search_once() -> tuple[Tensor, ...]:
            found = []
            for classes in torch.split(every, classes_at_once):
                search = _Search(net, clean, classes, generator, lr, cost, success)
                batches = endless(clean, batch_size, generator)
                for _ in range(rounds):
                    active = search.active(stop_after)
                    if not len(active):
                        break
                    rates = search.round(active, [next(batches) for _ in range(steps)])
                    search.keep(active, rates)
                    search.adapt(active, rates, cost_factor, patience)
                found.append(search.found())
            return tuple(torch.cat(parts) for parts in zip(*found, strict=True))

        return smallest(
            *(torch.stack(p) for p in zip(*(search_once() for _ in range(restarts)), strict=True))
        )


def smallest(masks: Tensor, patterns: Tensor, rates: Tensor, sizes: Tensor) -> Triggers:
    """Keep the smallest trigger of every class that several searches found.

    Args:
        masks: ``(R, C, 1, H, W)`` of R searches.
        patterns: ``(R, C, channels, H, W)``.
        rates: ``(R, C)``.
        sizes: ``(R, C)``, of the masks; infinity for a trigger that was not good enough. If none of
            a class was, the one that works best is kept.
    """
    size, best = sizes.min(0)
    best = torch.where(size.isinf(), rates.argmax(0), best)
    every = torch.arange(len(best), device=best.device)
    return Triggers(masks[best, every], patterns[best, every], rates[best, every])


def endless(clean: LabeledImages, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Shuffled batches of normalized images, pass after pass."""
    while True:
        for images, _ in clean.batches(batch_size, generator):
            yield images


class _Search:
    """The search for the triggers of some classes, all in one batch."""

    def __init__(
        self,
        net: nn.Module,
        clean: LabeledImages,
        classes: Tensor,
        generator: torch.Generator,
        lr: float,
        cost: float,
        success: float,
    ) -> None:
        count, device = len(classes), clean.device
        channels, height, width = clean.images.shape[1:]
        self.net = net
        self.classes = classes
        self.success = success
        self.dtype = clean.dtype
        self.pixel_range = PixelRange.of(clean)
        draw = torch.randn(count, 1 + channels, height, width, generator=generator)
        self.logits = draw.to(device).requires_grad_()
        self.optimizer = torch.optim.Adam([self.logits], lr=lr, betas=(0.5, 0.9))
        self.cost = torch.full((count,), cost, device=device)
        # Rounds in a row that were good enough or, negative, that were not.
        self.streak = torch.zeros(count, device=device)
        # Rounds in which the best mask did not shrink.
        self.stale = torch.zeros(count, device=device)
        self.best = torch.sigmoid(self.logits).detach()
        self.best_norm = torch.full((count,), torch.inf, device=device)
        self.best_rate = torch.zeros(count, device=device)

    def active(self, stop_after: int) -> Tensor:
        """The places of the classes that are not done."""
        return (self.stale < stop_after).nonzero()[:, 0]

    def round(self, active: Tensor, batches: list[Tensor]) -> Tensor:
        """Take a step on every batch.

        Returns:
            The share of the images that were turned into each active class.
        """
        rates = torch.zeros(len(active), device=active.device)
        for images in batches:
            parts = torch.sigmoid(self.logits[active])
            masks, colors = parts[:, None, :1], parts[:, None, 1:]
            patterns = self.pixel_range.to_inputs(colors)
            stamped = torch.lerp(images.float()[None], patterns, masks).flatten(0, 1)
            targets = self.classes[active].repeat_interleave(len(images))
            logits = self.net(stamped.to(self.dtype)).float()
            # The mean over the images but the sum over the classes: each is its own problem.
            loss = functional.cross_entropy(logits, targets, reduction="sum") / len(images)
            loss = loss + (self.cost[active] * masks.sum((1, 2, 3, 4))).sum()
            (self.logits.grad,) = torch.autograd.grad(loss, self.logits)
            self.optimizer.step()
            hits = (logits.detach().argmax(1) == targets).float()
            rates += hits.view(len(active), -1).mean(1) / len(batches)
        return rates

    @torch.no_grad()
    def keep(self, active: Tensor, rates: Tensor) -> None:
        """Keep each mask that is smaller than any that was good enough before."""
        parts = torch.sigmoid(self.logits[active])
        norms, least = parts[:, 0].sum((1, 2)), self.best_norm[active]
        enough = rates >= self.success
        smaller = enough & (norms < least)
        taken = smaller | least.isinf()
        self.best[active[taken]] = parts[taken]
        self.best_rate[active[taken]] = rates[taken]
        self.best_norm[active[smaller]] = norms[smaller]
        shrunk = enough & (norms < 0.99 * least)
        waiting = shrunk | self.best_norm[active].isinf()
        self.stale[active] = torch.where(waiting, 0.0, self.stale[active] + 1)

    def adapt(self, active: Tensor, rates: Tensor, factor: float, patience: int) -> None:
        """Raise or lower the cost of a mask that was, or was not, good enough for some rounds."""
        streak, enough = self.streak[active], rates >= self.success
        streak = torch.where(enough, streak.clamp_min(0) + 1, streak.clamp_max(0) - 1)
        scale = torch.where(enough, factor, 1 / factor)
        due = streak.abs() >= patience
        self.cost[active] *= torch.where(due, scale, 1.0)
        self.streak[active] = torch.where(due, 0.0, streak)

    def found(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The best masks, their patterns, their rates, and sizes: infinite if not good enough."""
        return self.best[:, :1], self.best[:, 1:], self.best_rate, self.best_norm
