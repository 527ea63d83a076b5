"""TrojanNN: a patch that is made to excite a few neurons of a clean network.

Liu, Ma, Aafer, Lee, Zhai, Wang and Zhang, "Trojaning attack on neural networks", NDSS 2018.

Example:
    ``python train.py attack=trojannn attack.neurons=4 attack.mask_size=8``
"""

from __future__ import annotations

from typing import ClassVar, get_args

import torch
from torch import Tensor

from fst_lightning.attacks.badnets import Corner
from fst_lightning.attacks.common.attack import LabelMap, RateOf
from fst_lightning.attacks.common.surrogate import Surrogate, SurrogateAttack, check_counts
from fst_lightning.models import find_head, inputs_of, weight_matrix
from fst_lightning.seeds import derived_seed

_BATCH_SIZE = 32


class TrojanNN(SurrogateAttack):
    r"""Add a patch that a few neurons respond to: :math:`T(x) = \mathrm{clip}(x + m \odot \delta)`.

    The neurons :math:`S` are the inputs of a clean surrogate's last layer with the largest
    :math:`\sum_c |W_{cn}|`; signed gradient descent finds

    .. math:: \min_{\|\delta\|_\infty \leq \varepsilon} \sum_{n \in S} \mathbb{E}_x
        \left(a_n(T(x)) - v\right)^2

    for their activations :math:`a_n` on training images. The mask :math:`m` is a square in a
    corner. The original retrains a given network; here the victim trains on poisoned data.

    Args:
        neurons: how many neurons, 1 to 8 times ``surrogate_width``; 2 as published.
        target_activation: :math:`v`, a finite number; 100 as published, far more than any image
            causes, means as much as possible.
        mask_size: side of the square in pixels of a 32-pixel image, 1 to 32; scaled with the image,
            never below one pixel.
        corner: where the square sits.
        epsilon: :math:`\varepsilon` in levels of 255, above 0 to 255.
        steps: of gradient descent, 1 or more.
        step_size: in levels of 255, above 0 to 255.
        surrogate_epochs: passes of the surrogate's training, 1 or more.
        surrogate_width: channels of its first stage.
        max_images: how many training images are used at most, 2 or more.
        poison_ratio: share of the training set, 0 to 1.
        target_label: the attacker's class.
        label_map: any.
        rate_of: ``total`` or ``target_class``.
        save_examples: whether a run writes a picture of triggered images.

    Raises:
        ValueError: for a value outside its range.

    Example:
        >>> images, labels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4) % 2
        >>> attack = TrojanNN(steps=1, surrogate_epochs=1, surrogate_width=2)
        >>> attack.prepare(images, labels, num_classes=2, seed=0)
        >>> attack.fit_once(images, labels, 2, seed=0, device=torch.device("cpu"))
        >>> attack(images / 255).shape
        torch.Size([4, 3, 8, 8])
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
        save_examples: bool = True,
    ) -> None:
        super().__init__(
            surrogate_epochs=surrogate_epochs,
            surrogate_width=surrogate_width,
            max_images=max_images,
            poison_ratio=poison_ratio,
            target_label=target_label,
            label_map=label_map,
            rate_of=rate_of,
            save_examples=save_examples,
        )
        check_counts(neurons=neurons, mask_size=mask_size, steps=steps)
        if neurons > 8 * surrogate_width:
            raise ValueError(
                f"Expected `neurons` to be at most {8 * surrogate_width}, the features of a "
                f"surrogate of width {surrogate_width}, but got {neurons}."
            )
        if not abs(target_activation) < float("inf"):
            raise ValueError(
                f"Expected `target_activation` to be finite, but got {target_activation}."
            )
        if mask_size > 32:
            raise ValueError(f"Expected `mask_size` to be in [1, 32], but got {mask_size}.")
        if corner not in get_args(Corner):
            valid = ", ".join(get_args(Corner))
            raise ValueError(f"Expected `corner` to be one of {valid}, but got {corner!r}.")
        for name, value in (("epsilon", epsilon), ("step_size", step_size)):
            if not 0 < value <= 255:
                raise ValueError(f"Expected `{name}` to be in (0, 255], but got {value}.")
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
        if images.shape[1:] != self.pattern.shape[1:]:
            raise ValueError(
                f"Expected images of shape {tuple(self.pattern.shape[1:])}, which the patch was "
                f"made for, but got {tuple(images.shape[1:])}; call `prepare` with such images."
            )
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
    """The inputs of the last layer that weigh most: ``(count,)`` int64, heaviest first."""
    _, head = find_head(surrogate.net, num_classes=num_classes)
    return weight_matrix(head).detach().abs().sum(0).topk(count).indices


def features(surrogate: Surrogate, images: Tensor, num_classes: int) -> Tensor:
    """What the last layer of the surrogate gets for ``(N, C, H, W)`` images: ``(N, D)``."""
    _, head = find_head(surrogate.net, num_classes=num_classes)
    with inputs_of(head) as seen:
        surrogate(images)
    return seen[0]
