"""Blended: a faint pattern over the whole image.

Example:
    ``python train.py attack=blended attack.blend_alpha=0.1 attack.image=my_picture.png``
"""

from __future__ import annotations

import torch
from torch import Tensor

from fst_lightning.attacks.common.attack import Attack, LabelMap, RateOf
from fst_lightning.attacks.common.pictures import check_picture, read_picture
from fst_lightning.validate import check_number


class Blended(Attack):
    r"""Mix a fixed pattern into the image, and relabel the image.

    *How it works.* The attacker chooses one picture or noise pattern and mixes a little of it into
    some training images, which get the target label. Each pixel changes only slightly, so that the
    trigger is hard to see, but the network learns to recognize the pattern as a whole. At test
    time, the same mixture makes the network answer with the target class.

    .. math:: T(x) = (1 - a)\, x + a\, k

    with the image :math:`x`, the pattern :math:`k` and its opacity :math:`a`.

    Args:
        blend_alpha: Opacity :math:`a` of the pattern, 0 to 1, the same in training and at test.
        image: Path of a picture to use as the pattern, resized to the images; None draws uniform
            noise for each pixel and channel.
        pattern_seed: Seed of that noise; independent of the seed of the run.
        poison_ratio: Share of the training set that is poisoned, 0 to 1.
        target_label: The attacker's class, 0 to C - 1.
        label_map: How labels change: ``all_to_one``, ``all_to_all``, ``clean_label`` or
            ``untargeted``.
        rate_of: What the ratio is a share of: ``total``, the training set, or ``target_class``.

    Shape:
        - images: ``(N, C, H, W)`` float in [0, 1].
        - :meth:`trigger`: the same shape, in [0, 1].

    Raises:
        ValueError: If an argument is out of its range, or the file is not an image.
        FileNotFoundError: If ``image`` does not exist.

    Needs:
        Write access to some training images and their labels. The attacker needs neither the
        network nor the training code. A picture is optional.

    Cost:
        One weighted sum per mini-batch; nothing before the training.

    When it fails:
        With a low opacity or few poisoned images, the network does not learn the pattern. Defenses
        that recover a trigger for the whole image, such as BTI-DBF, find it.

    Note:
        The paper blends in a cartoon picture, and proposes a lower opacity in training than at
        test. Here the default pattern is noise, because no third-party picture is shipped, and the
        opacity is the same in both, as in benchmarks. :class:`~fst_lightning.attacks.AdaptiveBlend`
        has two opacities.

    Example:
        >>> attack = Blended(blend_alpha=1.0)
        >>> image = torch.rand(1, 3, 32, 32)
        >>> bool((attack(image) - attack.pattern).abs().max() < 1 / 255)
        True

    References:
        Chen, Liu, Li, Lu and Song, "Targeted backdoor attacks on deep learning systems using data
        poisoning", 2017, arXiv 1712.05526 (blended injection strategy).

    See Also:
        - :class:`~fst_lightning.attacks.AdaptiveBlend`: parts of the pattern, and cover images.
        - :class:`~fst_lightning.attacks.Bypass`: the same trigger, with features that hide it.
        - :class:`~fst_lightning.attacks.LowFrequency`: a smooth pattern.
    """

    pattern: Tensor

    def __init__(
        self,
        blend_alpha: float = 0.2,
        image: str | None = None,
        pattern_seed: int = 0,
        poison_ratio: float = 0.05,
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
        check_number("blend_alpha", blend_alpha, high=1)
        check_picture(image)
        self.blend_alpha = blend_alpha
        self.image = image
        self.pattern_seed = pattern_seed
        self.draw(3, 32, 32)

    def trigger(self, images: Tensor) -> Tensor:
        """Mix the pattern into ``(N, C, H, W)`` images in [0, 1]."""
        self.check_shape(images, *self.pattern.shape[1:])
        return torch.lerp(images, self.pattern.to(images.dtype), self.blend_alpha)

    def draw(self, channels: int, height: int, width: int) -> None:
        """Draw or read the pattern for images of this size."""
        if self.image is None:
            generator = torch.Generator().manual_seed(self.pattern_seed)
            noise = torch.randint(0, 256, (1, channels, height, width), generator=generator)
            pattern = noise / 255
        else:
            pattern = read_picture(self.image, channels, height, width)
        self.register_buffer("pattern", pattern)
