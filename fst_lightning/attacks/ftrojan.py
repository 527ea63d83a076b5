"""Frequency trojan (FTrojan): two waves in the color planes, window by window.

Example:
    ``python train.py attack=ftrojan attack.magnitude=50``
"""

from __future__ import annotations

from collections.abc import Sequence

from fst_lightning.attacks.common.attack import LabelMap, RateOf
from fst_lightning.attacks.common.frequency import FrequencyAttack


class FTrojan(FrequencyAttack):
    r"""Raise a middle and a high frequency of the color planes, and relabel the image.

    *How it works.* The attacker splits the image into windows and adds two fixed wave patterns to
    the color of each, not to the brightness, to which the eye is more sensitive. The change is
    small and spread over all pixels, so that it is hard to see. The network recognizes it well,
    because convolutions respond to fixed frequencies.

    .. math:: T(x) = \mathrm{clip}(x + p), \qquad p = D^{-1}(M e)

    with the image :math:`x`, the inverse discrete cosine transform :math:`D^{-1}` of windows of the
    planes U and V, the magnitude :math:`M` and the indicator :math:`e` of the positions.

    Args:
        magnitude: Magnitude :math:`M` in levels of 255, greater than 0; 30 as published.
        positions: Coefficients in a window as row, column, row, column, 0 to ``window`` - 1.
        window: Height and width of the windows in pixels, 1 or more; a smaller image is one window.
        poison_ratio: Share of the training set that is poisoned, 0 to 1.
        target_label: The attacker's class, 0 to C - 1.
        label_map: How labels change: ``all_to_one``, ``all_to_all``, ``clean_label`` or
            ``untargeted``.
        rate_of: What the ratio is a share of: ``total``, the training set, or ``target_class``.

    Shape:
        - images: ``(N, C, H, W)`` float in [0, 1].
        - :meth:`trigger`: the same shape, in [0, 1].

    Raises:
        ValueError: If a magnitude, a window or a position is out of its range.

    Needs:
        Write access to some training images and their labels. The attacker needs neither the
        network nor the training code.

    Cost:
        One addition per mini-batch; nothing before the training.

    When it fails:
        Augmentation undoes it: a mirrored pattern is the pattern with its sign changed, and a
        shifted one does not match either. Switch off mirroring and crops, or raise ``magnitude``.

    Note:
        The published code rounds colors to whole levels between the transforms; here they are
        rounded once, at the end, so that the pattern is the same for all images. Gray images have
        no color planes and get the pattern in their only one.

    Example:
        >>> attack = FTrojan(magnitude=30)
        >>> u = 0.492 * attack.pattern[0, 2]  # blue, of a pattern without luminance
        >>> round(float(255 * u.norm()), 2)  # 30 at two positions
        42.43

    References:
        Wang, Yao, Xu, An, Tong and Wang, "An invisible black-box backdoor attack through frequency
        domain", ECCV 2022, arXiv 2111.10991.

    See Also:
        - :class:`~fst_lightning.attacks.CTRL`: stronger, on the whole image, with true labels.
        - :class:`~fst_lightning.attacks.LowFrequency`: avoids high frequencies instead.
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
    ) -> None:
        super().__init__(
            magnitude=magnitude,
            positions=positions,
            window=window,
            poison_ratio=poison_ratio,
            target_label=target_label,
            label_map=label_map,
            rate_of=rate_of,
        )
