"""FTrojan: two cosines in the colour planes, window by window.

Wang, Yao, Xu, An, Tong and Wang, "An invisible black-box backdoor attack through frequency domain",
ECCV 2022, arXiv 2111.10991.

Example:
    ``python train.py attack=ftrojan attack.magnitude=50``
"""

from __future__ import annotations

from collections.abc import Sequence

from fst_lightning.attacks.common.attack import LabelMap, RateOf
from fst_lightning.attacks.common.frequency import FrequencyAttack


class FTrojan(FrequencyAttack):
    r"""Raise a middle and a high frequency of U and V: :math:`T(x) = \mathrm{clip}(x + p)`.

    The pattern :math:`p` is the inverse discrete cosine transform of :math:`M` at the given
    positions, repeated in windows over the planes U and V, as red, green and blue. Colours are not
    rounded to whole levels between the transforms, only in the end.

    Args:
        magnitude: :math:`M` in levels of 255, above 0; 30 as published.
        positions: of coefficients in a window, row, column, row, column, 0 to ``window`` - 1.
        window: height and width of the windows in pixels, 1 or more; of a smaller image the whole.
        poison_ratio: share of the training set, 0 to 1.
        target_label: the attacker's class.
        label_map: any.
        rate_of: ``total`` or ``target_class``.
        save_examples: whether a run writes a picture of triggered images.

    Raises:
        ValueError: for a magnitude, window or position outside its range.

    Example:
        >>> attack = FTrojan(magnitude=30)
        >>> u = 0.492 * attack.pattern[0, 2]  # blue, of a pattern without luminance
        >>> round(float(255 * u.norm()), 2)  # 30 at two positions
        42.43
    """

    def __init__(
        self,
        magnitude: float = 30.0,
        positions: Sequence[int] = (15, 15, 31, 31),
        window: int = 32,
        poison_ratio: float = 0.05,
        target_label: int = 0,
        label_map: LabelMap = "all_to_one",
        rate_of: RateOf = "total",
        save_examples: bool = True,
    ) -> None:
        super().__init__(
            magnitude=magnitude,
            positions=positions,
            window=window,
            poison_ratio=poison_ratio,
            target_label=target_label,
            label_map=label_map,
            rate_of=rate_of,
            save_examples=save_examples,
        )
