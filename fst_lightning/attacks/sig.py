"""Sinusoidal signal (SIG): a faint wave over images whose labels stay true.

Example:
    ``python train.py attack=sig attack.delta=20 attack.rate_of=target_class``
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fst_lightning.attacks.common.attack import Attack, LabelMap, RateOf
from fst_lightning.validate import check_number


class SIG(Attack):
    r"""Add a sinusoid along the rows of images of the target class.

    *How it works.* The attacker adds faint vertical stripes, whose brightness follows a sine, to
    images of the target class. Their labels stay true, so that a person who checks labels finds no
    mistake. The network learns that the stripes are a sign of the class. At test time, the stripes
    on an image of another class make the network answer with the target class.

    .. math:: T(x) = \mathrm{clip}(x + v), \qquad v_{ij} = \Delta \sin(2 \pi j f / W)

    with the image :math:`x`, the signal :math:`v` in row :math:`i` and column :math:`j`, its
    amplitude :math:`\Delta`, its frequency :math:`f` and the width :math:`W`. All channels get the
    same signal.

    Args:
        delta: Amplitude :math:`\Delta` in levels of 255, greater than 0 and at most 255; 40 as
            published.
        frequency: Periods :math:`f` in the width of the image, greater than 0; 6 as published.
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
        Write access to images of the target class. Labels stay true, so they may be checked.

    Cost:
        One addition per mini-batch; nothing before the training.

    When it fails:
        With a small ``delta`` or few poisoned images, the network ignores the stripes, because the
        images are easy to recognize without them. The target class limits the number of poisoned
        images.

    Note:
        The default poisons a share of the *whole* training set, but takes the rows from the target
        class. A large ratio therefore leaves this class with few clean images, which costs clean
        accuracy; ``rate_of=target_class`` counts within the class. A width of at most twice the
        frequency cannot show that many periods (the sine of 6 periods in 12 columns is 0 in all of
        them); such images get W / 4 periods.

    Example:
        >>> attack = SIG()
        >>> gray = torch.full((1, 1, 32, 32), 0.5)
        >>> [round(float(v), 3) for v in 255 * (attack.trigger(gray) - gray)[0, 0, 0, :5]]
        [0.0, 36.955, 28.284, -15.307, -40.0]

    References:
        Barni, Kallas and Tondi, "A new backdoor attack in CNNs by training set corruption without
        label poisoning", ICIP 2019, arXiv 1902.11237.

    See Also:
        - :class:`~fst_lightning.attacks.LabelConsistent`: true labels, with adversarial images.
        - :class:`~fst_lightning.attacks.CTRL`: true labels, with waves in the color planes.
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
    ) -> None:
        super().__init__(
            poison_ratio=poison_ratio,
            target_label=target_label,
            label_map=label_map,
            rate_of=rate_of,
        )
        check_number("delta", delta, low_open=True, high=255)
        check_number("frequency", frequency, low_open=True)
        self.delta = delta
        self.frequency = frequency
        self.draw(3, 32, 32)

    def trigger(self, images: Tensor) -> Tensor:
        """Add the sinusoid to ``(N, C, H, W)`` images in [0, 1]."""
        self.check_shape(images, None, None, self.signal.shape[-1])
        return (images + self.signal.to(images.dtype)).clamp(0, 1)

    def draw(self, channels: int, height: int, width: int) -> None:
        """Draw the sinusoid for images of this width."""
        # In double precision: the sine of a large float32 is inaccurate.
        columns = torch.arange(width, dtype=torch.float64)
        periods = self.frequency if 2 * self.frequency < width else width / 4
        signal = self.delta / 255 * torch.sin(2 * math.pi * columns * periods / width)
        self.register_buffer("signal", signal.float().reshape(1, 1, 1, width))
