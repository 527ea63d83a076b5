"""Learnable, imperceptible and robust attack (LIRA): learned noise for each image.

Example:
    ``python train.py attack=lira attack.eps=0.05``
"""

from __future__ import annotations

import torch
from torch import Tensor

from fst_lightning.attacks.blind import clean_and_triggered
from fst_lightning.attacks.common.attack import Classify, LabelMap, RateOf
from fst_lightning.attacks.common.generator_attack import Generator
from fst_lightning.attacks.common.trained_attack import TrainedAttack
from fst_lightning.seeds import derived_seed
from fst_lightning.validate import check_number


class LIRA(TrainedAttack):
    r"""Add the bounded noise of a generator network that learns together with the classifier.

    *How it works.* The attacker controls the training. A small generator network proposes noise for
    each image, bounded so that it is hard to see. In the first epochs, the generator and the
    classifier are trained together: the classifier learns to answer with the target class, and the
    generator learns noise that makes this easy. The generator is then frozen, and the classifier
    trains on alone.

    .. math:: T(x) = \mathrm{clip}(x + \epsilon\, g(x)), \qquad
        \min_{f, g} \alpha\,\mathrm{CE}(f(x), y) + (1 - \alpha)\,\mathrm{CE}(f(T(x)), t)

    with the image :math:`x`, its label :math:`y`, the target :math:`t`, the classifier :math:`f`,
    the generator :math:`g` with values in [-1, 1], the bound :math:`\epsilon` and the weight
    :math:`\alpha`. The first term covers all rows, the second one the poisoned ones.

    Args:
        eps: Bound :math:`\epsilon` of the noise, in units of [0, 1], greater than 0 and at most 1.
        clean_weight: Weight :math:`\alpha` of the clean loss, 0 to 1.
        joint_fraction: Share of the epochs in which the generator learns, 0 to 1.
        width: Channels of the generator's first layer, 1 or more.
        lr: Learning rate of the generator (Adam), greater than 0.
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
        Control of the training, with gradients through the network; float32 or bfloat16.

    Cost:
        Each step passes triggered copies of the poisoned rows through the generator and the
        classifier. While the generator learns, it takes a backward pass as well.

    When it fails:
        With a small ``eps``, a network needs many epochs to see the noise. Until then the triggered
        half of the loss rewards answering everything with the target class, which costs clean
        accuracy.

    Note:
        The paper stamps all rows (a poison ratio of 1) and updates a second copy of the generator;
        here one backward pass gives both networks their gradients, and the default ratio is that of
        the other attacks. Triggered images are not rounded to 8 bits, because a rounded trigger has
        no gradient.

    Example:
        >>> image = torch.rand(1, 3, 16, 16)
        >>> bool((LIRA(eps=0.1, width=4)(image) - image).abs().max() <= 0.1 + 1e-6)
        True

    References:
        Doan, Lao, Zhao and Li, "LIRA: Learnable, imperceptible and robust backdoor attacks", ICCV
        2021,
        https://openaccess.thecvf.com/content/ICCV2021/html/Doan_LIRA_Learnable_Imperceptible_and_Robust_Backdoor_Attacks_ICCV_2021_paper.html

    See Also:
        - :class:`~fst_lightning.attacks.InputAware`: a learned pattern and mask instead of noise.
        - :class:`~fst_lightning.attacks.Blind`: the same loss with a fixed trigger.
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
    ) -> None:
        super().__init__(
            poison_ratio=poison_ratio,
            target_label=target_label,
            label_map=label_map,
            rate_of=rate_of,
        )
        check_number("eps", eps, low_open=True, high=1)
        check_number("clean_weight", clean_weight, high=1)
        check_number("joint_fraction", joint_fraction, high=1)
        check_number("lr", lr, low_open=True)
        self.eps = eps
        self.clean_weight = clean_weight
        self.joint_fraction = joint_fraction
        self.width = width
        self.lr = lr
        self._draw(3, 0)

    def prepare(self, images: Tensor, labels: Tensor, num_classes: int, seed: int) -> None:
        """Draw the generator for images of this size; a trained one is kept."""
        if (images.shape[1], seed) != self._drawn_for:
            self._draw(images.shape[1], seed)

    def trigger(self, images: Tensor) -> Tensor:
        """Add the generated noise to ``(N, C, H, W)`` images in [0, 1]."""
        noise: Tensor = self.generator(images)
        return (images + self.eps * noise).clamp(0, 1)

    def begin_epoch(self, epoch: int, num_epochs: int) -> None:
        """Freeze the generator after its share of the epochs."""
        self.generator.requires_grad_(epoch < self.joint_fraction * num_epochs)

    def own_optimizer(self) -> torch.optim.Optimizer:
        """Adam for the generator."""
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
        """The weighted sum of the clean and the triggered cross-entropy."""
        clean, triggered = clean_and_triggered(
            self, classify, images, labels, poisoned, label_smoothing
        )
        return self.clean_weight * clean + (1 - self.clean_weight) * triggered

    def _draw(self, channels: int, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, "lira generator"))
            self.generator = Generator(channels, channels, self.width)
        self._drawn_for = channels, seed
