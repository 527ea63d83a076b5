"""Low-frequency attack (LF): a smooth pattern without traces in high frequencies.

Example:
    ``python train.py attack=low_frequency attack.method=dct attack.epsilon=12``
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from fst_lightning.attacks.common.attack import LabelMap, RateOf
from fst_lightning.attacks.common.frequency import cosines
from fst_lightning.attacks.common.surrogate import SurrogateAttack, input_gradient
from fst_lightning.seeds import derived_seed
from fst_lightning.validate import check_choice, check_counts, check_number

Method = Literal["surrogate", "dct"]

_BATCH_SIZE = 64
_MOMENTUM = 0.9


class LowFrequency(SurrogateAttack):
    r"""Add one smooth pattern to each image, and relabel the image.

    *How it works.* Most triggers leave traces in the high frequencies of an image, where a defender
    can find them. This trigger is a smooth pattern that consists of low frequencies only. By
    default the pattern is optimized so that it misleads a clean network of the attacker on as many
    images as possible, which makes it easy to learn. Training images with the pattern get the
    target label.

    .. math:: T(x) = \mathrm{clip}(x + \delta), \qquad
        \max_{\|\delta\|_\infty = \varepsilon} \sum_x \mathrm{CE}(s(x + \delta), y)

    with the image :math:`x`, its label :math:`y`, the surrogate :math:`s` and the pattern
    :math:`\delta`, a sum of the lowest :math:`k \times k` cosines of the discrete cosine transform.

    Args:
        method: How the pattern is made: ``surrogate`` optimizes it as above; ``dct`` draws random
            coefficients, which needs neither data nor a network.
        epsilon: Bound :math:`\varepsilon` in levels of 255, greater than 0 and at most 255.
        cutoff: Cosines :math:`k` along each axis, 1 to the number of pixels along it. Cosine number
            i has i / 2 periods in the image; number 0 is constant.
        steps: Steps of gradient ascent (``surrogate``), 1 or more.
        pattern_seed: Seed of the random coefficients, from which ``surrogate`` starts; independent
            of the seed of the run.
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
        network nor the training code. The surrogate is trained on the training set; ``method=dct``
        needs none.

    Cost:
        Before the training, a surrogate is trained and the pattern takes ``steps`` of gradient
        ascent on it. The result is kept in the store. A step costs one addition.

    When it fails:
        At a low poison ratio, a short training does not learn so faint and smooth a pattern. The
        surrogate is not the victim: what misleads one network may mislead the other less.

    Note:
        The paper builds the perturbation with DeepFool and a Gaussian filter. Here gradient ascent
        with momentum and a sharp low-pass filter do so, because they keep the bound exactly and
        need no loop over single images. ``dct`` is not in the paper.

    Example:
        >>> attack = LowFrequency(method="dct", epsilon=10)
        >>> round(float(attack.pattern.abs().max() * 255), 3)
        10.0

    References:
        Zeng, Park, Mao and Jia, "Rethinking the backdoor attacks' triggers: A frequency
        perspective", ICCV 2021, arXiv 2104.03413.

    See Also:
        - :class:`~fst_lightning.attacks.FTrojan`: uses middle and high frequencies.
        - :class:`~fst_lightning.attacks.Blended`: a pattern with all frequencies.
    """

    fit_arguments: ClassVar[tuple[str, ...]] = (
        "method",
        "epsilon",
        "cutoff",
        "steps",
        "pattern_seed",
        *SurrogateAttack.fit_arguments,
    )

    pattern: Tensor

    def __init__(
        self,
        method: Method = "surrogate",
        epsilon: float = 16.0,
        cutoff: int = 4,
        steps: int = 100,
        pattern_seed: int = 0,
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
        check_choice("method", method, Method)
        check_number("epsilon", epsilon, low_open=True, high=255)
        check_counts(cutoff=cutoff, steps=steps)
        self.method = method
        self.epsilon = epsilon
        self.cutoff = cutoff
        self.steps = steps
        self.pattern_seed = pattern_seed
        self.draw(3, 32, 32)

    def prepare(self, images: Tensor, labels: Tensor, num_classes: int, seed: int) -> None:
        """Draw the random pattern for images of this shape."""
        if not self.fitted:
            super().prepare(images, labels, num_classes, seed)

    def fit(
        self, images: Tensor, labels: Tensor, num_classes: int, seed: int, device: torch.device
    ) -> None:
        """Increase the loss of a surrogate, starting from the random pattern (``surrogate``)."""
        if self.method == "dct":
            return
        surrogate = self.train_surrogate(images, labels, num_classes, seed, device)
        generator = torch.Generator().manual_seed(derived_seed(seed, "low_frequency"))
        chosen = torch.randperm(len(images), generator=generator)[: self.max_images]
        vertical = cosines(images.shape[-2], self.cutoff).to(device, torch.float32)
        horizontal = cosines(images.shape[-1], self.cutoff).to(device, torch.float32)
        pattern = self.pattern.to(device)
        velocity = torch.zeros_like(pattern)
        for step in range(self.steps):
            drawn = torch.randint(len(chosen), (_BATCH_SIZE,), generator=generator)
            rows = chosen[drawn]
            triggered = images[rows].to(device).float() / 255 + pattern
            gradient = input_gradient(surrogate, triggered.clamp(0, 1), labels[rows].to(device))
            uphill = low_pass(gradient.sum(0, keepdim=True), vertical, horizontal)
            velocity = _MOMENTUM * velocity + uphill / uphill.norm().clamp_min(1e-12)
            # Step sizes fall from a tenth of the pattern to zero.
            size = 0.1 * pattern.norm() * (1 - step / self.steps)
            pattern = self._scaled(pattern + size * velocity / velocity.norm().clamp_min(1e-12))
        self.pattern = pattern

    def trigger(self, images: Tensor) -> Tensor:
        """Add the pattern to ``(N, C, H, W)`` images in [0, 1]."""
        if self.method == "surrogate":
            self.check_fitted()
        self.check_shape(images, *self.pattern.shape[1:])
        return (images + self.pattern.to(images.dtype)).clamp(0, 1)

    def draw(self, channels: int, height: int, width: int) -> None:
        """Draw the random pattern for images of this shape."""
        if self.cutoff > min(height, width):
            raise ValueError(
                f"Expected `cutoff` to be at most {min(height, width)} for images of {height} x "
                f"{width} pixels, but got {self.cutoff}."
            )
        generator = torch.Generator().manual_seed(self.pattern_seed)
        size = (1, channels, self.cutoff, self.cutoff)
        coefficients = torch.randn(size, generator=generator)
        vertical, horizontal = (cosines(size, self.cutoff).float() for size in (height, width))
        self.register_buffer("pattern", self._scaled(vertical.T @ coefficients @ horizontal))

    def _scaled(self, pattern: Tensor) -> Tensor:
        """Scale to the bound; clipping would bring high frequencies back."""
        return pattern * (self.epsilon / 255 / pattern.abs().max())


def low_pass(planes: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
    """Project ``(..., H, W)`` planes on the cosines ``(k, H)`` and ``(k, W)`` along both axes."""
    return vertical.T @ (vertical @ planes @ horizontal.T) @ horizontal
