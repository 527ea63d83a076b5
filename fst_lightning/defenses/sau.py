"""Shared adversarial unlearning (SAU): unlearn what fools the old and the new network.

Example:
    ``python purify.py attack=blended defense=sau``
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.defenses.common.clean_data import CleanData
from fst_lightning.defenses.common.defense import Defense
from fst_lightning.defenses.common.folded_batchnorm import FoldedBatchNorm
from fst_lightning.defenses.common.snapshot import call_with, snapshot
from fst_lightning.validate import check_number


class SharedAdversarialUnlearning(Defense):
    r"""Tune on adversarial examples that fool the tuned and the backdoored network alike.

    *How it works.* A trigger is a kind of adversarial perturbation: it makes the network answer
    with a wrong class. The defense keeps a frozen copy of the backdoored network. For each image it
    searches a perturbation that both networks answer with the same wrong class, because such shared
    examples resemble triggered images. A step of the optimizer then teaches the network not to give
    the wrong answer of the frozen copy, while it keeps classifying clean images.

    For each image, signed gradient steps within :math:`\|\delta\|_\infty \le \epsilon` minimize

    .. math:: -\frac{\beta_1}{2} \left(\mathrm{CE}(f(x + \delta), y) +
        \mathrm{CE}(f_0(x + \delta), y)\right) + \beta_2\, \mathrm{JS}(p, p_0)

    with the network :math:`f`, its frozen copy :math:`f_0` and their softmax outputs :math:`p` and
    :math:`p_0`. Each cross-entropy counts only while its network is right, and the Jensen-Shannon
    divergence (JS) only until both networks give the same wrong class. The optimizer then minimizes

    .. math:: \lambda_1\, \mathrm{CE}(f(x), y) + \lambda_2\, \mathrm{CE}(f(x + \delta), y)
        - \frac{\lambda_3}{n} \sum_{i:\, \hat y_i \ne y_i} \log(1 - p_{\hat y_i}(x_i + \delta_i))

    where :math:`\hat y_i` is the answer of :math:`f_0` to :math:`x_i + \delta_i`.

    Args:
        radius: Bound :math:`\epsilon` of the perturbation, in units of [0, 1], 0 or more.
        adv_lr: Length of a signed step, in units of [0, 1], 0 or more.
        adv_steps: Number of signed steps, 0 or more; the search starts from
            :math:`\delta = \epsilon`.
        clean_weight: Weight :math:`\lambda_1`, 0 or more.
        adv_weight: Weight :math:`\lambda_2`, 0 or more.
        shared_weight: Weight :math:`\lambda_3`, 0 or more.
        fool_weight: Weight :math:`\beta_1`, 0 or more.
        divergence_weight: Weight :math:`\beta_2`, 0 or more.

    Shape:
        - images: ``(N, C, H, W)`` float, normalized.
        - labels: ``(N,)`` int64.

    Raises:
        ValueError: If an argument is out of its range.

    Needs:
        Clean images with true labels.

    Cost:
        Each step takes up to ``adv_steps`` forward and backward passes through both networks, and
        then one through each. The search for an image ends once both networks give the same wrong
        class. It is one of the slowest defenses that tune.

    When it fails:
        Triggers that no perturbation within ``radius`` resembles stay in part: strong patches,
        sinusoids and warps. The backdoor may be hidden and not forgotten (``docs/hidden.md``).

    Note:
        The network stays in evaluation mode, so that BatchNorm's running statistics do not change,
        as in the public code. The perturbed images are not clipped to [0, 1], also as there.

    Example:
        >>> defense = SharedAdversarialUnlearning()
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        >>> defense.prepare(net, torch.Generator())
        >>> loss = defense.loss(net, torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 0, 1]))
        >>> bool(loss > 0)
        True

    References:
        Wei, Zhang, Zha and Wu, "Shared adversarial unlearning: Backdoor mitigation by unlearning
        shared adversarial examples", NeurIPS 2023, arXiv 2307.10562.

    See Also:
        - :class:`~fst_lightning.defenses.ImplicitUnlearning`: one perturbation for all images.
        - :class:`~fst_lightning.defenses.NeuralPolarizer`: trains one added layer on adversarial
          examples.
    """

    original: Tensor
    """The weights of the backdoored network; empty before :meth:`prepare`."""

    unit: Tensor
    """One unit of [0, 1] in normalized units, ``(1, C, 1, 1)``; ones before it is known."""

    def __init__(
        self,
        radius: float = 0.2,
        adv_lr: float = 0.2,
        adv_steps: int = 5,
        clean_weight: float = 1.0,
        adv_weight: float = 0.0,
        shared_weight: float = 1.0,
        fool_weight: float = 0.01,
        divergence_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_number("radius", radius)
        check_number("adv_lr", adv_lr)
        check_number("adv_steps", adv_steps, whole=True)
        check_number("clean_weight", clean_weight)
        check_number("adv_weight", adv_weight)
        check_number("shared_weight", shared_weight)
        check_number("fool_weight", fool_weight)
        check_number("divergence_weight", divergence_weight)
        self.radius = radius
        self.adv_lr = adv_lr
        self.adv_steps = adv_steps
        self.clean_weight = clean_weight
        self.adv_weight = adv_weight
        self.shared_weight = shared_weight
        self.fool_weight = fool_weight
        self.divergence_weight = divergence_weight
        self.register_buffer("original", torch.empty(0))
        self.register_buffer("unit", torch.ones(1, 1, 1, 1))
        self._net: list[nn.Module] = []
        self._rates: dict[str, Tensor] = {}

    def prepare(self, net: nn.Module, generator: torch.Generator) -> None:
        """Keep a copy of the backdoored weights."""
        self._net, self._rates = [net], {}
        self._folded = FoldedBatchNorm()
        self.original = snapshot(net)

    def study(self, net: nn.Module, clean: CleanData, generator: torch.Generator) -> None:
        """Record how the images are normalized."""
        self.unit = clean.unit.clone()

    def loss(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """The loss on the images and on shared adversarial examples of them."""
        with self._folded.of(net, images):
            moved = images + self.perturb(net, images, labels) * self.unit
            with torch.no_grad():
                answer = call_with(net, self.original, moved).argmax(1)
            fooled = answer != labels
            # The others count only in the cross-entropy.
            rows = (
                first_rows(fooled)
                if self.adv_weight == 0
                else torch.arange(len(images), device=images.device)
            )
            logits = net(moved[rows])
            share = len(rows) / len(images)
            unlearning = unlearning_loss(logits, answer[rows], fooled[rows])
            total = self.shared_weight * share * unlearning
            if self.clean_weight:
                total = total + self.clean_weight * functional.cross_entropy(net(images), labels)
            if self.adv_weight:
                total = total + self.adv_weight * functional.cross_entropy(logits, labels)
        shared = fooled[rows] & (logits.detach().argmax(1) == answer[rows])
        self._rates = {
            "fooled_original": fooled.float().mean(),
            "shared": share * shared.float().mean(),
        }
        return total

    def perturb(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        r"""Search the perturbation of each image, in units of [0, 1].

        Args:
            net: The network :math:`f`.
            images: ``(N, C, H, W)``, normalized.
            labels: ``(N,)`` int64.

        Returns:
            :math:`\delta`, ``(N, C, H, W)``.
        """
        delta = torch.full_like(images, self.radius)
        searched = torch.ones_like(labels, dtype=torch.bool)
        for _ in range(self.adv_steps):
            rows = first_rows(searched)
            part = delta[rows].requires_grad_()
            moved = images[rows] + part * self.unit
            logits, original_logits = net(moved), call_with(net, self.original, moved)
            cost = self.search_loss(logits, original_logits, labels[rows])
            (slope,) = torch.autograd.grad(cost, part)
            with torch.no_grad():
                delta[rows] = (part - self.adv_lr * slope.sign()).clamp(-self.radius, self.radius)
            # Of a shared answer both terms are zero, so that it stays as it is from here on.
            searched[rows] = ~shared_answers(logits, original_logits, labels[rows])
            if not searched.any():
                break
        return delta

    def search_loss(self, logits: Tensor, original_logits: Tensor, labels: Tensor) -> Tensor:
        """The objective that the perturbation minimizes, as a mean over the mini-batch.

        Args:
            logits: ``(N, K)``, of :math:`f` on the perturbed images.
            original_logits: ``(N, K)``, of :math:`f_0` on them.
            labels: ``(N,)`` int64.
        """
        fools = [
            functional.cross_entropy(given, labels, reduction="none") * (given.argmax(1) == labels)
            for given in (logits, original_logits)
        ]
        shared = shared_answers(logits, original_logits, labels)
        divergence = jensen_shannon(logits, original_logits) * ~shared
        cost = self.divergence_weight * divergence - self.fool_weight * (fools[0] + fools[1]) / 2
        return cost.mean()

    def finish(self) -> None:
        """Drop the references to the network."""
        self._net = []
        self._folded = FoldedBatchNorm()

    def always_eval(self) -> Iterator[nn.Module]:
        """The whole network."""
        yield from self._net

    def statistics(self) -> dict[str, Tensor]:
        """The shares of the last mini-batch that fooled :math:`f_0`, and both networks alike."""
        return dict(self._rates)


def shared_answers(logits: Tensor, other: Tensor, labels: Tensor) -> Tensor:
    """Which images two networks give the same wrong class, ``(N,)`` bool.

    Example:
        >>> logits = torch.eye(2)
        >>> shared_answers(logits, logits, torch.tensor([0, 0]))
        tensor([False,  True])
    """
    answer = logits.argmax(1)
    return (answer == other.argmax(1)) & (answer != labels)


def first_rows(chosen: Tensor) -> Tensor:
    """The numbers of the chosen rows, and of as many others as fill up a multiple of 16.

    A convolution prepares itself for each new size of a batch, which costs more than the rows.

    Args:
        chosen: ``(N,)`` bool.

    Returns:
        ``(n,)`` int64, the chosen rows first; at least one row, and at most all.

    Example:
        >>> first_rows(torch.tensor([False, True, False])).tolist()
        [1, 0, 2]
    """
    count = _BATCH_STEP * max(1, math.ceil(int(chosen.sum()) / _BATCH_STEP))
    return (~chosen).to(torch.uint8).argsort(stable=True)[:count]


_BATCH_STEP = 16


def unlearning_loss(logits: Tensor, answer: Tensor, counted: Tensor) -> Tensor:
    r""":math:`-\frac1n \sum_i \log(1 - p_{\hat y_i})`, summed over the counted images of n.

    Args:
        logits: ``(N, K)``.
        answer: The classes :math:`\hat y`, ``(N,)`` int64.
        counted: Which images count, ``(N,)`` bool.

    Example:
        >>> logits, answer = torch.zeros(2, 4), torch.tensor([0, 1])
        >>> loss = unlearning_loss(logits, answer, torch.tensor([True, False]))
        >>> round(float(loss), 4)  # -log(3/4) / 2
        0.1438
    """
    # A difference of logarithms, because 1 - p rounds to 0 in float32 if p is almost 1.
    logits = logits.float()
    chosen = functional.one_hot(answer, logits.shape[1]).bool()
    others = logits.masked_fill(chosen, -torch.inf).logsumexp(1)
    log_other = others - logits.logsumexp(1)
    return -(log_other * counted).mean()


def jensen_shannon(logits: Tensor, other: Tensor) -> Tensor:
    r"""The Jensen-Shannon divergence of two softmax distributions, one value per image, in nats.

    .. math:: \tfrac12 \mathrm{KL}(p \,\|\, m) + \tfrac12 \mathrm{KL}(q \,\|\, m), \qquad
        m = (p + q) / 2

    Example:
        >>> farthest = jensen_shannon(torch.tensor([[99.0, 0.0]]), torch.tensor([[0.0, 99.0]]))
        >>> round(float(farthest), 4)  # log(2)
        0.6931
    """
    log_p, log_q = logits.float().log_softmax(1), other.float().log_softmax(1)
    log_m = torch.stack([log_p, log_q]).logsumexp(0) - math.log(2)
    return ((log_p.exp() * (log_p - log_m)) + (log_q.exp() * (log_q - log_m))).sum(1) / 2
