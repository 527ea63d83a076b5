"""LIRA: a learned, bounded noise, different for every image.

Doan, Lao, Zhao and Li, "LIRA: Learnable, imperceptible and robust backdoor attacks", ICCV 2021.

Example:
    ``python train.py attack=lira attack.eps=0.05``
"""

from __future__ import annotations

import torch
from torch import Tensor

from fst_lightning.attacks.blind import clean_and_triggered
from fst_lightning.attacks.common.attack import Classify, LabelMap, RateOf, check_ratio
from fst_lightning.attacks.common.generator_attack import Generator
from fst_lightning.attacks.common.trained_attack import TrainedAttack
from fst_lightning.seeds import derived_seed


class LIRA(TrainedAttack):
    r"""Add what a network makes of the image: :math:`T(x) = \mathrm{clip}(x + \epsilon\, g(x))`.

    The values of :math:`g` are in [-1, 1]. In the first epochs classifier and generator lower the
    same loss,

    .. math:: \alpha\,\mathrm{CE}(f(x), y) + (1 - \alpha)\,\mathrm{CE}(f(T(x)), t),

    the first term over all rows, the second over the poisoned ones. Then the generator is frozen,
    and the classifier goes on alone.

    Args:
        eps: :math:`\epsilon`, the largest change of a value, in units of [0, 1]; above 0 to 1.
        clean_weight: :math:`\alpha`, 0 to 1.
        joint_fraction: share of the epochs in which the generator learns, 0 to 1.
        width: channels of the generator's first layer, 1 or more.
        lr: its learning rate, above 0 (Adam).
        poison_ratio: share of the training set, 0 to 1; published is 1.
        target_label: the attacker's class.
        label_map: how labels change.
        rate_of: what the ratio is a share of, ``total`` or ``target_class``.
        save_examples: whether a run writes a picture of triggered images.

    Raises:
        ValueError: for an argument out of its range.

    Example:
        >>> image = torch.rand(1, 3, 16, 16)
        >>> bool((LIRA(eps=0.1, width=4)(image) - image).abs().max() <= 0.1 + 1e-6)
        True
    """

    def __init__(
        self,
        eps: float = 0.01,
        clean_weight: float = 0.5,
        joint_fraction: float = 0.5,
        width: int = 16,
        lr: float = 1e-3,
        poison_ratio: float = 0.1,
        target_label: int = 0,
        label_map: LabelMap = "all_to_one",
        rate_of: RateOf = "total",
        save_examples: bool = True,
    ) -> None:
        super().__init__(
            poison_ratio=poison_ratio,
            target_label=target_label,
            label_map=label_map,
            rate_of=rate_of,
            save_examples=save_examples,
        )
        if not 0 < eps <= 1:
            raise ValueError(f"Expected `eps` to be in (0, 1], but got {eps}.")
        check_ratio("clean_weight", clean_weight)
        check_ratio("joint_fraction", joint_fraction)
        if not 0 < lr < float("inf"):
            raise ValueError(f"Expected `lr` to be above 0, but got {lr}.")
        self.eps = eps
        self.clean_weight = clean_weight
        self.joint_fraction = joint_fraction
        self.width = width
        self.lr = lr
        self._draw(3, 0)

    def prepare(self, images: Tensor, labels: Tensor, num_classes: int, seed: int) -> None:
        """Draw the generator for images of this kind; what is trained already is kept."""
        if (images.shape[1], seed) != self._drawn_for:
            self._draw(images.shape[1], seed)

    def trigger(self, images: Tensor) -> Tensor:
        """Add the generated noise to ``(N, C, H, W)`` images in [0, 1]."""
        noise: Tensor = self.generator(images)
        return (images + self.eps * noise).clamp(0, 1)

    def begin_epoch(self, epoch: int, num_epochs: int) -> None:
        """Freeze the generator when its share of the epochs is over."""
        self.generator.requires_grad_(epoch < self.joint_fraction * num_epochs)

    def own_optimizer(self) -> torch.optim.Optimizer:
        """Adam, for the generator."""
        return torch.optim.Adam(self.generator.parameters(), self.lr)

    def loss(
        self,
        classify: Classify,
        images: Tensor,
        labels: Tensor,
        poisoned: Tensor,
        cover: Tensor,
        label_smoothing: float,
    ) -> Tensor:
        """The clean and the triggered cross-entropy, weighted."""
        clean, triggered = clean_and_triggered(
            self, classify, images, labels, poisoned, label_smoothing
        )
        return self.clean_weight * clean + (1 - self.clean_weight) * triggered

    def _draw(self, channels: int, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, "lira generator"))
            self.generator = Generator(channels, channels, self.width)
        self._drawn_for = channels, seed
