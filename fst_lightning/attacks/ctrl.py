"""CTRL: two waves in the color planes of images whose labels stay true.

Example:
    ``python train.py attack=ctrl attack.magnitude=200 attack.rate_of=target_class``
"""

from __future__ import annotations

from collections.abc import Sequence

from fst_lightning.attacks.common.attack import LabelMap, RateOf
from fst_lightning.attacks.common.frequency import FrequencyAttack


class CTRL(FrequencyAttack):
    r"""Raise two frequencies of the color planes in images of the target class.

    *How it works.* The attacker adds two faint wave patterns to the color of an image, not to its
    brightness, to which the eye is more sensitive. Only images of the target class are changed, and
    their labels stay true. The network learns that the waves are a sign of the class. The attack
    was made for self-supervised learning, where labels do not matter; here the classifier is
    trained with labels.

    .. math:: T(x) = \mathrm{clip}(x + p), \qquad p = D^{-1}(M e)

    with the image :math:`x`, the inverse discrete cosine transform :math:`D^{-1}` of the planes U
    and V over the whole image, the magnitude :math:`M` and the indicator :math:`e` of the
    positions.

    Args:
        magnitude: Magnitude :math:`M` in levels of 255, greater than 0; 100 as published for images
            of 32 pixels. The change of a pixel falls with the side of the image: 200 on 64 pixels
            is as strong.
        positions: Coefficients of a 32-pixel image as row, column, row, column, 0 to 31. They scale
            with the image, which keeps their periods in pixels.
        poison_ratio: Share of the training set that is poisoned, 0 to 1.
        target_label: The attacker's class, 0 to C - 1.
        label_map: How labels change: ``all_to_one``, ``all_to_all``, ``clean_label`` or
            ``untargeted``.
        rate_of: What the ratio is a share of: ``total``, the training set, or ``target_class``.

    Shape:
        - images: ``(N, C, H, W)`` float in [0, 1].
        - :meth:`trigger`: the same shape, in [0, 1].

    Raises:
        ValueError: If a magnitude or a position is out of its range.

    Needs:
        Write access to images of the target class. Labels stay true, so they may be checked.

    Cost:
        One addition per mini-batch; nothing before the training.

    When it fails:
        The target class limits the number of poisoned images. On larger images the same
        ``magnitude`` changes each pixel less. If clean images of the class are easy to recognize,
        the network can ignore the waves.

    Note:
        Training with labels is a departure from the paper that benchmarks share. Gray images have
        no color planes and get the pattern in their only one.

    Example:
        >>> attack = CTRL(magnitude=100)
        >>> u = 0.492 * attack.pattern[0, 2]  # blue, of a pattern without luminance
        >>> round(float(255 * u.norm()), 1)  # 100 at two positions
        141.4

    References:
        Li, Pang, Xi, Du, Ji, Yao and Wang, "An embarrassingly simple backdoor attack on
        self-supervised learning", ICCV 2023, arXiv 2210.07346.

    See Also:
        - :class:`~fst_lightning.attacks.FTrojan`: weaker, in windows, with changed labels.
        - :class:`~fst_lightning.attacks.SIG`: true labels, with a wave in the brightness.
    """

    def __init__(
        self,
        magnitude: float = 100.0,
        positions: Sequence[int] = (15, 15, 31, 31),
        poison_ratio: float = 0.05,
        target_label: int = 0,
        label_map: LabelMap = "clean_label",
        rate_of: RateOf = "total",
    ) -> None:
        super().__init__(
            magnitude=magnitude,
            positions=positions,
            window=None,
            poison_ratio=poison_ratio,
            target_label=target_label,
            label_map=label_map,
            rate_of=rate_of,
        )
