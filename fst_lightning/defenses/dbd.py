"""Decoupling-based defense (DBD): features without labels, then labels that can be trusted.

Example:
    ``python purify.py attack=blended defense=dbd``
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.defenses.common.clean_data import LabeledImages, PoisonedData
from fst_lightning.defenses.common.dataset_defense import DatasetDefense, Fit
from fst_lightning.defenses.common.features import all_features, features_of
from fst_lightning.defenses.common.snapshot import restore, snapshot
from fst_lightning.defenses.common.views import random_views
from fst_lightning.defenses.common.whole_set import (
    fresh_copy,
    keep_modes,
    recompute_batchnorm,
    seeded,
)
from fst_lightning.models import Head, apply_head, find_head, num_inputs
from fst_lightning.validate import check_number

_LEAST_CHANCE = 1e-4
_PROJECTION = 128
_SHARPENING = 0.5
_MIXING = 0.75
_GUESSES = 2


class DecouplingDefense(DatasetDefense):
    r"""Learn features without labels, and use only the labels that fit them.

    *How it works.* A backdoor connects a trigger with a label. The defense breaks this connection
    by learning features from images alone. With these features fixed, it trains a head on the
    delivered labels. Rows with a high loss have labels that do not fit their features, so that they
    are suspected. Finally, the whole network is trained on all images, but without the labels of
    suspected rows.

    .. math:: \ell = 0.1\,\mathrm{CE} + \mathrm{RCE}

    is the loss of the head, with the cross-entropy CE and the reverse cross-entropy RCE. The rows
    with the lowest :math:`\ell` keep their labels. Features are learned by SimCLR, and the last
    step is MixMatch.

    Args:
        pretrain_epochs: Epochs of the first step, 1 or more.
        pretrain_batch_size: Images per step of it, 2 or more.
        temperature: Temperature of SimCLR, greater than 0.
        head_epochs: Epochs of the second step, 1 or more.
        credible: Share of the rows whose label is trusted, greater than 0 and less than 1.
        semi_epochs: Epochs of the third step, in passes over the trusted rows, 1 or more.
        batch_size: Trusted and unlabeled images per step, each; 2 or more.
        lr: Learning rate of Adam in the last two steps, greater than 0; the first step uses half of
            it.
        unlabeled_weight: Final weight of the unlabeled images, 0 or more; it grows linearly.
        horizontal_flip: Whether views are mirrored; False for signs, digits and text.
        head: Dotted name of the linear head; None finds it.

    Shape:
        - images: ``(N, C, H, W)``, the training set as it was delivered.
        - labels: ``(N,)`` int64, as delivered.
        - :meth:`suspects`: ``(N,)`` bool.

    Raises:
        ValueError: If an argument is out of its range, or no linear head is found.

    Needs:
        The training set as it was delivered, and a linear head. No clean images.

    Cost:
        Three trainings: features without labels, the head, and the semi-supervised one, in which
        each step takes trusted and unlabeled images. It is the slowest defense.

    When it fails:
        A short first step gives poor features, which cost clean accuracy. Attacks that work without
        labels, such as CTRL, already act on the first step.

    Note:
        By default half of the rows are suspected, so that the false positive rate is high by
        design: only labels are lost, not images. The paper trains for 1,000, 10 and 200 epochs; the
        defaults here are far shorter.

    Example:
        >>> DecouplingDefense(credible=0.7).credible
        0.7

    References:
        - Huang, Li, Wu, Qin and Ren, "Backdoor defense via decoupling the training process", ICLR
          2022, arXiv 2202.03423.
        - Chen, Kornblith, Norouzi and Hinton, "A simple framework for contrastive learning of
          visual representations" (SimCLR), ICML 2020, arXiv 2002.05709.
        - Wang, Ma, Chen, Luo, Yi and Bailey, "Symmetric cross entropy for robust learning with
          noisy labels", ICCV 2019, arXiv 1908.06112.
        - Berthelot, Carlini, Goodfellow, Papernot, Oliver and Raffel, "MixMatch: A holistic
          approach to semi-supervised learning", NeurIPS 2019, arXiv 1905.02249.

    See Also:
        - :class:`~fst_lightning.defenses.AntiBackdoorLearning`: isolates rows by their loss.
        - :class:`~fst_lightning.defenses.ActivationClustering`: needs only the given network's
          features.
    """

    pretrained: Tensor
    """All weights and buffers after the second step, ``(n,)``; empty before it."""

    losses: Tensor
    """``(N,)``, the symmetric cross-entropy of every row; empty before the second step."""

    def __init__(
        self,
        pretrain_epochs: int = 20,
        pretrain_batch_size: int = 256,
        temperature: float = 0.5,
        head_epochs: int = 10,
        credible: float = 0.5,
        semi_epochs: int = 20,
        batch_size: int = 64,
        lr: float = 2e-3,
        unlabeled_weight: float = 15.0,
        horizontal_flip: bool = False,
        head: str | None = None,
    ) -> None:
        super().__init__()
        check_number("pretrain_epochs", pretrain_epochs, low=1, whole=True)
        check_number("pretrain_batch_size", pretrain_batch_size, low=2, whole=True)
        check_number("temperature", temperature, low_open=True)
        check_number("head_epochs", head_epochs, low=1, whole=True)
        check_number("credible", credible, low_open=True, high=0.999)
        check_number("semi_epochs", semi_epochs, low=1, whole=True)
        check_number("batch_size", batch_size, low=2, whole=True)
        check_number("lr", lr, low_open=True)
        check_number("unlabeled_weight", unlabeled_weight)
        self.pretrain_epochs = pretrain_epochs
        self.pretrain_batch_size = pretrain_batch_size
        self.temperature = temperature
        self.head_epochs = head_epochs
        self.credible = credible
        self.semi_epochs = semi_epochs
        self.batch_size = batch_size
        self.lr = lr
        self.unlabeled_weight = unlabeled_weight
        self.horizontal_flip = horizontal_flip
        self.head = head
        self.register_buffer("pretrained", torch.empty(0))
        self.register_buffer("losses", torch.empty(0))

    @property
    def needs_head(self) -> bool:
        """True: it looks at the features in front of the head."""
        return True

    def suspects(
        self, net: nn.Module, poisoned: PoisonedData, generator: torch.Generator
    ) -> Tensor:
        """The rows whose delivered label fits their features least, ``(N,)`` bool."""
        fresh = fresh_copy(net, generator)
        _, head = find_head(fresh, self.head)
        with seeded(generator, poisoned.device):
            self._pretrain(fresh, head, poisoned, generator)
            fresh.eval()
            self.losses = self._train_head(fresh, head, poisoned, generator).cpu()
        self.pretrained = snapshot(fresh).cpu()
        found = torch.ones(len(poisoned), dtype=torch.bool)
        believed = max(1, round(self.credible * len(poisoned)))
        found[self.losses.argsort(stable=True)[:believed]] = False
        return found

    def _views(self, data: LabeledImages, images: Tensor, generator: torch.Generator) -> Tensor:
        """Strong views, for the first step."""
        views = random_views(
            data.pixels(images), generator, least_area=0.2, flip=self.horizontal_flip, color=0.4
        )
        return data.normalize(views)

    def _pretrain(
        self, net: nn.Module, head: Head, data: PoisonedData, generator: torch.Generator
    ) -> None:
        width = num_inputs(head)
        projection = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, _PROJECTION)
        ).to(data.device, head.weight.dtype)
        net.requires_grad_(True)
        others = {id(parameter) for parameter in head.parameters()}
        features = [p for p in net.parameters() if id(p) not in others]
        optimizer = torch.optim.Adam([*features, *projection.parameters()], lr=self.lr / 2)
        net.train()
        for _ in range(self.pretrain_epochs):
            for images, _ in data.batches(self.pretrain_batch_size, generator):
                both = torch.cat([self._views(data, images, generator) for _ in range(2)])
                optimizer.zero_grad()
                found = projection(features_of(net, head, both))
                torch.autograd.backward(contrastive_loss(found, self.temperature))
                optimizer.step()

    def _train_head(
        self, net: nn.Module, head: Head, data: PoisonedData, generator: torch.Generator
    ) -> Tensor:
        """Train the head on fixed features, and return the loss of each row."""
        features, labels = all_features(net, head, data), data.labels
        optimizer = torch.optim.Adam(head.parameters(), lr=self.lr)
        for _ in range(self.head_epochs):
            order = torch.randperm(len(labels), generator=generator).to(labels.device)
            for start in range(0, len(order), self.batch_size):
                rows = order[start : start + self.batch_size]
                optimizer.zero_grad()
                logits = apply_head(head, features[rows])
                loss = symmetric_cross_entropy(logits, labels[rows]).mean()
                torch.autograd.backward(loss)
                optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            return symmetric_cross_entropy(apply_head(head, features), labels)

    def retrain(
        self,
        make_net: Callable[[], nn.Module],
        poisoned: PoisonedData,
        suspects: Tensor,
        generator: torch.Generator,
        fit: Fit,
    ) -> nn.Module | None:
        """Continue from the features, with the trusted labels."""
        net = make_net().to(poisoned.device)
        restore(net, self.pretrained.to(poisoned.device))
        believed, others = poisoned.subset(~suspects), poisoned.subset(suspects)
        if not len(believed) or not len(others):
            raise ValueError(
                "Expected trusted rows and other rows, but got "
                f"{len(believed)} and {len(others)}; change `credible`."
            )
        with keep_modes(net), seeded(generator, poisoned.device):
            self._semi_supervised(net, believed, others, generator)
        recompute_batchnorm(net, poisoned)
        return net

    def _semi_supervised(
        self,
        net: nn.Module,
        believed: PoisonedData,
        others: PoisonedData,
        generator: torch.Generator,
    ) -> None:
        net.requires_grad_(True)
        optimizer = torch.optim.Adam(net.parameters(), lr=self.lr)
        steps = self.semi_epochs * math.ceil(len(believed) / self.batch_size)
        unlabeled = _endless(others, self.batch_size, generator)
        labeled = _endless(believed, self.batch_size, generator)
        mixing = torch.distributions.Beta(_MIXING, _MIXING)
        net.train()
        for step in range(steps):
            images, labels = next(labeled)
            unknown, _ = next(unlabeled)
            first = self._crops(believed, images, generator)
            guesses = [self._crops(others, unknown, generator) for _ in range(_GUESSES)]
            with torch.no_grad():
                chances = torch.stack([net(view).softmax(1) for view in guesses]).mean(0)
                guessed = sharpen(chances, _SHARPENING)
            known = functional.one_hot(labels, guessed.shape[1]).to(guessed.dtype)
            inputs = torch.cat([first, *guesses])
            targets = torch.cat([known, *[guessed] * _GUESSES])
            share = float(mixing.sample())
            share = max(share, 1 - share)  # closer to the image that the loss belongs to
            order = torch.randperm(len(inputs), generator=generator).to(inputs.device)
            inputs = share * inputs + (1 - share) * inputs[order]
            targets = share * targets + (1 - share) * targets[order]
            optimizer.zero_grad()
            logits = net(inputs)
            loss = functional.cross_entropy(logits[: len(first)], targets[: len(first)])
            distance = (logits[len(first) :].softmax(1) - targets[len(first) :]).square().mean()
            loss = loss + self.unlabeled_weight * (step + 1) / steps * distance
            torch.autograd.backward(loss)
            optimizer.step()
        optimizer.zero_grad()

    def _crops(self, data: LabeledImages, images: Tensor, generator: torch.Generator) -> Tensor:
        """Weak views, for the third step."""
        views = random_views(
            data.pixels(images), generator, least_area=0.75, flip=self.horizontal_flip
        )
        return data.normalize(views)

    def findings(self) -> dict[str, Any]:
        """The number of rows whose label is trusted."""
        return {**super().findings(), "believed": int((~self.suspected).sum())}


def contrastive_loss(found: Tensor, temperature: float) -> Tensor:
    r"""SimCLR's loss: find the other view of an image among the views of all images.

    .. math:: -\frac{1}{2n} \sum_i \log \frac{e^{s_{i, j(i)} / T}}{\sum_{k \ne i} e^{s_{ik} / T}}

    with the cosines :math:`s` between rows and the row :math:`j(i)` of the other view.

    Args:
        found: ``(2n, d)``, all first views and then all second ones.
        temperature: Temperature :math:`T`, greater than 0.

    Returns:
        A scalar.

    Example:
        >>> found = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
        >>> round(float(contrastive_loss(found, 1.0)), 4)  # log(1 + 2 / e)
        0.5514
    """
    unit = functional.normalize(found.float(), dim=1)
    alike = unit @ unit.T / temperature
    alike.fill_diagonal_(-torch.inf)
    half = len(found) // 2
    mates = torch.arange(len(found), device=found.device).roll(half)
    return functional.cross_entropy(alike, mates)


def symmetric_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    r"""Symmetric cross-entropy of each row, which wrong labels influence less.

    .. math:: 0.1\,(-\log p_y) + (-\log 10^{-4})\,(1 - p_y)

    The second term is the reverse cross-entropy :math:`-\sum_k p_k \log q_k`, with the zeros of the
    one-hot label :math:`q` raised to :math:`10^{-4}`.

    Args:
        logits: ``(N, C)``.
        labels: ``(N,)`` int64.

    Returns:
        ``(N,)``.

    Example:
        >>> loss = symmetric_cross_entropy(torch.zeros(1, 2), torch.tensor([0]))
        >>> round(float(loss), 3)  # 0.1 log 2 + 9.21 / 2
        4.674
    """
    forward = functional.cross_entropy(logits, labels, reduction="none")
    return 0.1 * forward - math.log(_LEAST_CHANCE) * (1 - torch.exp(-forward))


def sharpen(chances: Tensor, temperature: float) -> Tensor:
    r"""Make likely classes more likely: :math:`p_k^{1/T} / \sum_j p_j^{1/T}`.

    Example:
        >>> sharpen(torch.tensor([[0.75, 0.25]]), 0.5)
        tensor([[0.9000, 0.1000]])
    """
    powers = chances ** (1 / temperature)
    return powers / powers.sum(1, keepdim=True)


def _endless(
    data: LabeledImages, batch_size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from data.batches(batch_size, generator)
