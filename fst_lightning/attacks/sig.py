"""SIG: a faint sinusoid along the rows of the image, on images whose label stays true.

Barni, Kallas and Tondi, "A new backdoor attack in CNNs by training set corruption without label
poisoning", ICIP 2019, arXiv 1902.11237.

Example:
    ``python train.py attack=sig attack.delta=20 attack.rate_of=target_class``
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fst_lightning.attacks.common.attack import Attack, LabelMap, RateOf


class SIG(Attack):
    r"""Add a sinusoid of the column: :math:`T(x) = \mathrm{clip}(x + v)`.

    :math:`v_{ij} = \Delta \sin(2 \pi j f / W)` in row i and column j, the same for all channels.

    Args:
        delta: amplitude :math:`\Delta` in levels of 255, above 0; 40 as published.
        frequency: periods :math:`f` in the width :math:`W` of the image, above 0; 6 as published.
            Columns can't show half as many periods as they are or more (the sine of 6 periods in 12
            columns is 0 in all of them): such images get W / 4 periods.
        poison_ratio: share of the training set, 0 to 1.
        target_label: the attacker's class.
        label_map: ``clean_label`` as published, or any other.
        rate_of: ``total`` or ``target_class``.
        save_examples: whether a run writes a picture of triggered images.

    Raises:
        ValueError: for an amplitude outside (0, 255] or a frequency that is not above 0.

    Example:
        >>> attack = SIG()
        >>> grey = torch.full((1, 1, 32, 32), 0.5)
        >>> [round(float(v), 3) for v in 255 * (attack.trigger(grey) - grey)[0, 0, 0, :5]]
        [0.0, 36.955, 28.284, -15.307, -40.0]
    """

    signal: Tensor

    def __init__(
        self,
        delta: float = 40.0,
        frequency: float = 6.0,
        poison_ratio: float = 0.05,
        target_label: int = 0,
        label_map: LabelMap = "clean_label",
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
        if not 0 < delta <= 255:
            raise ValueError(f"Expected `delta` to be in (0, 255], but got {delta}.")
        if not (math.isfinite(frequency) and frequency > 0):
            raise ValueError(f"Expected `frequency` to be greater than 0, but got {frequency}.")
        self.delta = delta
        self.frequency = frequency
        self.draw(3, 32, 32)

    def trigger(self, images: Tensor) -> Tensor:
        """Add the sinusoid to ``(N, C, H, W)`` images in [0, 1]."""
        if images.shape[-1] != self.signal.shape[-1]:
            raise ValueError(
                f"Expected images of {self.signal.shape[-1]} columns, which the sinusoid was drawn "
                f"for, but got {images.shape[-1]}; call `prepare` with such images."
            )
        return (images + self.signal.to(images.dtype)).clamp(0, 1)

    def draw(self, channels: int, height: int, width: int) -> None:
        """Draw the sinusoid for images of this width."""
        # In double precision: the sine of a large float32 is off by more than a rounding.
        columns = torch.arange(width, dtype=torch.float64)
        periods = self.frequency if 2 * self.frequency < width else width / 4
        signal = self.delta / 255 * torch.sin(2 * math.pi * columns * periods / width)
        self.register_buffer("signal", signal.float().reshape(1, 1, 1, width))
