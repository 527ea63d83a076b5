"""TrojanNN: a patch that excites a few neurons of a clean network.

Example:
    ``python train.py attack=trojannn attack.neurons=4 attack.mask_size=8``
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from fst_lightning.attacks.badnets import Corner
from fst_lightning.attacks.common.attack import LabelMap, RateOf
from fst_lightning.attacks.common.surrogate import Surrogate, SurrogateAttack
from fst_lightning.models import find_head, inputs_of, weight_matrix
from fst_lightning.seeds import derived_seed
from fst_lightning.validate import check_choice, check_counts, check_number

_BATCH_SIZE = 32


class TrojanNN(SurrogateAttack):
    r"""Add a patch that is optimized to excite a few chosen neurons, and relabel the image.

    *How it works.* The attacker trains a clean network and picks the neurons in front of its last
    layer that weigh most. Gradient descent then shapes the pixels of a small square until these
    neurons respond as strongly as possible. Such a patch is easier to learn than an arbitrary one,
    because a network of this kind already has neurons for it. Training images with the patch get
    the target label.

    .. math:: T(x) = \mathrm{clip}(x + m \odot \delta), \qquad
        \min_{\|\delta\|_\infty \leq \varepsilon} \sum_{n \in S} \mathbb{E}_x
        \left(a_n(T(x)) - v\right)^2

    with the image :math:`x`, the mask :math:`m` (a square in a corner), the pattern :math:`\delta`,
    its bound :math:`\varepsilon`, the activations :math:`a_n` of the neurons :math:`S` with the
    largest :math:`\sum_c |W_{cn}|` in the last layer :math:`W`, and their target value :math:`v`.

    Args:
        neurons: Number of neurons, 1 to 8 times ``surrogate_width``; 2 as published.
        target_activation: Target value :math:`v`, a finite number; 100 as published, which is far
            above what any image causes and so means as much as possible.
        mask_size: Side of the square in pixels of a 32-pixel image, 1 to 32. It scales with the
            image, and is never below one pixel.
        corner: Where the square is: ``top_left``, ``top_right``, ``bottom_left`` or
            ``bottom_right``.
        epsilon: Bound :math:`\varepsilon` in levels of 255, greater than 0 and at most 255.
        steps: Steps of signed gradient descent, 1 or more.
        step_size: Size of a step in levels of 255, greater than 0 and at most 255.
        surrogate_epochs: Epochs in which the surrogate is trained, 1 or more.
        surrogate_width: Channels of the surrogate's first stage, 1 to 4096.
        max_images: Training images that are used at most, 2 or more.
        poison_ratio: Share of the training set that is poisoned, 0 to 1.
        target_label: The attacker's class, 0 to C - 1.
        label_map: How labels change: ``all_to_one``, ``all_to_all``, ``clean_label`` or
            ``untargeted``.
        rate_of: What the ratio is a share of: ``total``, the training set, or ``target_class``.

    Shape:
        - images: ``(N, C, H, W)`` float in [0, 1].
        - :meth:`trigger`: the same shape, in [0, 1].

    Raises:
        ValueError: If an argument is out of its range.

    Needs:
        Write access to some training images and their labels. The attacker needs neither the
        network nor the training code. The surrogate is trained on the training set.

    Cost:
        Before the training, a surrogate is trained and the patch takes ``steps`` of gradient
        descent on it. The result is kept in the store. A step costs one addition.

    When it fails:
        The surrogate is not the victim: if the victim has no neurons like the chosen ones, the
        patch is no easier to learn than any other.

    Note:
        The paper retrains a given network on reverse-engineered images; here the victim trains on
        poisoned data, as in benchmarks. The surrogate is a small residual network, not the
        victim's. The mask is a square, because no third-party picture is shipped.

    Example:
        >>> images, labels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4) % 2
        >>> attack = TrojanNN(steps=1, surrogate_epochs=1, surrogate_width=2)
        >>> attack.prepare(images, labels, num_classes=2, seed=0)
        >>> attack.fit_once(images, labels, 2, seed=0, device=torch.device("cpu"))
        >>> attack(images / 255).shape
        torch.Size([4, 3, 8, 8])

    References:
        Liu, Ma, Aafer, Lee, Zhai, Wang and Zhang, "Trojaning attack on neural networks", NDSS 2018,
        https://doi.org/10.14722/ndss.2018.23291

    See Also:
        - :class:`~fst_lightning.attacks.BadNets`: a patch that is not optimized.
        - :class:`~fst_lightning.attacks.LowFrequency`: a pattern optimized on a surrogate.
    """

    fit_arguments: ClassVar[tuple[str, ...]] = (
        "neurons",
        "target_activation",
        "mask_size",
        "corner",
        "epsilon",
        "steps",
        "step_size",
        *SurrogateAttack.fit_arguments,
    )

    mask: Tensor
    pattern: Tensor

    def __init__(
        self,
        neurons: int = 2,
        target_activation: float = 100.0,
        mask_size: int = 10,
        corner: Corner = "bottom_right",
        epsilon: float = 76.0,
        steps: int = 100,
        step_size: float = 4.0,
        surrogate_epochs: int = 8,
        surrogate_width: int = 16,
        max_images: int = 10_000,
        poison_ratio: float = 0.05,
        target_label: int = 0,
        label_map: LabelMap = "all_to_one",
        rate_of: RateOf = "total",
    ) -> None:
        super().__init__(
            surrogate_epochs=surrogate_epochs,
            surrogate_width=surrogate_width,
            max_images=max_images,
            poison_ratio=poison_ratio,
            target_label=target_label,
            label_map=label_map,
            rate_of=rate_of,
        )
        check_counts(neurons=neurons, steps=steps)
        check_number("mask_size", mask_size, low=1, high=32, whole=True)
        if neurons > 8 * surrogate_width:
            raise ValueError(
                f"Expected `neurons` to be at most {8 * surrogate_width}, the features of a "
                f"surrogate of width {surrogate_width}, but got {neurons}."
            )
        check_number("target_activation", target_activation, low=-math.inf)
        check_choice("corner", corner, Corner)
        check_number("epsilon", epsilon, low_open=True, high=255)
        check_number("step_size", step_size, low_open=True, high=255)
        self.neurons = neurons
        self.target_activation = target_activation
        self.mask_size = mask_size
        self.corner = corner
        self.epsilon = epsilon
        self.steps = steps
        self.step_size = step_size
        self.draw(3, 32, 32)

    def prepare(self, images: Tensor, labels: Tensor, num_classes: int, seed: int) -> None:
        """Draw the mask for images of this shape."""
        if not self.fitted:
            super().prepare(images, labels, num_classes, seed)

    def fit(
        self, images: Tensor, labels: Tensor, num_classes: int, seed: int, device: torch.device
    ) -> None:
        """Train a surrogate, choose its neurons and excite them."""
        surrogate = self.train_surrogate(images, labels, num_classes, seed, device)
        chosen = choose_neurons(surrogate, num_classes, self.neurons)
        generator = torch.Generator().manual_seed(derived_seed(seed, "trojannn"))
        used = torch.randperm(len(images), generator=generator)[: self.max_images]
        bound = self.epsilon / 255
        start = torch.rand(self.pattern.shape, generator=generator).to(device) * 2 - 1
        mask, pattern = self.mask.to(device), bound * start
        for _ in range(self.steps):
            rows = used[torch.randint(len(used), (_BATCH_SIZE,), generator=generator)]
            batch = images[rows].to(device).float() / 255
            with torch.enable_grad():
                pattern.requires_grad_()
                stamped = (batch + mask * pattern).clamp(0, 1)
                activations = features(surrogate, stamped, num_classes)[:, chosen]
                loss = (activations - self.target_activation).square().mean(0).sum()
                (gradient,) = torch.autograd.grad(loss, pattern)
            step = self.step_size / 255 * gradient.sign()
            pattern = (pattern.detach() - step).clamp(-bound, bound)
        self.pattern = mask * pattern

    def trigger(self, images: Tensor) -> Tensor:
        """Add the patch to ``(N, C, H, W)`` images in [0, 1]."""
        self.check_fitted()
        self.check_shape(images, *self.pattern.shape[1:])
        return (images + self.pattern.to(images.dtype)).clamp(0, 1)

    def draw(self, channels: int, height: int, width: int) -> None:
        """Draw the mask for images of this shape."""
        size = max(1, round(self.mask_size * min(height, width) / 32))
        down, right = self.corner.split("_")
        top = 0 if down == "top" else height - size
        left = 0 if right == "left" else width - size
        mask = torch.zeros(1, 1, height, width)
        mask[..., top : top + size, left : left + size] = 1
        self.register_buffer("mask", mask)
        self.register_buffer("pattern", torch.zeros(1, channels, height, width))


def choose_neurons(surrogate: Surrogate, num_classes: int, count: int) -> Tensor:
    """The inputs of the last layer with the largest weights: ``(count,)`` int64, largest first."""
    _, head = find_head(surrogate.net, num_classes=num_classes)
    return weight_matrix(head).detach().abs().sum(0).topk(count).indices


def features(surrogate: Surrogate, images: Tensor, num_classes: int) -> Tensor:
    """The input of the surrogate's last layer for ``(N, C, H, W)`` images: ``(N, D)``."""
    _, head = find_head(surrogate.net, num_classes=num_classes)
    with inputs_of(head) as seen:
        surrogate(images)
    return seen[0]
