"""CTRL: two cosines in the colour planes of images whose label stays true.

Li, Pang, Xi, Du, Ji, Yao and Wang, "An embarrassingly simple backdoor attack on self-supervised
learning", ICCV 2023, arXiv 2210.07346. Made for self-supervised learning; here the classifier is
trained with labels.

Example:
    ``python train.py attack=ctrl attack.magnitude=200 attack.rate_of=target_class``
"""

from __future__ import annotations

from collections.abc import Sequence

from fst_lightning.attacks.common.attack import LabelMap, RateOf
from fst_lightning.attacks.common.frequency import FrequencyAttack


class CTRL(FrequencyAttack):
    r"""Raise two frequencies of U and V in the whole image: :math:`T(x) = \mathrm{clip}(x + p)`.

    As :class:`~fst_lightning.attacks.FTrojan`, but stronger, in one window as large as the image,
    and with true labels.

    Args:
        magnitude: :math:`M` in levels of 255, above 0; 100 as published for images of 32 pixels.
            The change of a pixel falls with the side of the image: 200 on 64 pixels are as strong.
        positions: of coefficients of an image of 32 pixels, row, column, row, column, 0 to 31;
            scaled with the image, which keeps their periods in pixels.
        poison_ratio: share of the training set, 0 to 1.
        target_label: the attacker's class.
        label_map: ``clean_label`` as published, or any other.
        rate_of: ``total`` or ``target_class``.
        save_examples: whether a run writes a picture of triggered images.

    Raises:
        ValueError: for a magnitude or position outside its range.

    Example:
        >>> attack = CTRL(magnitude=100)
        >>> u = 0.492 * attack.pattern[0, 2]  # blue, of a pattern without luminance
        >>> round(float(255 * u.norm()), 1)  # 100 at two positions
        141.4
    """

    def __init__(
        self,
        magnitude: float = 100.0,
        positions: Sequence[int] = (15, 15, 31, 31),
        poison_ratio: float = 0.05,
        target_label: int = 0,
        label_map: LabelMap = "clean_label",
        rate_of: RateOf = "total",
        save_examples: bool = True,
    ) -> None:
        super().__init__(
            magnitude=magnitude,
            positions=positions,
            window=None,
            poison_ratio=poison_ratio,
            target_label=target_label,
            label_map=label_map,
            rate_of=rate_of,
            save_examples=save_examples,
        )
