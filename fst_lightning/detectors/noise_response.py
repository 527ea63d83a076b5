"""Noise response: where triggers drawn at random send images.

Example:
    ``python detect.py checkpoint=FILE 'detector=[noise_response]'``
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional

from fst_lightning.defenses.common.clean_data import LabeledImages
from fst_lightning.defenses.common.pixel_range import PixelRange
from fst_lightning.defenses.triggers.random import random_triggers
from fst_lightning.detectors.detector import Detector, Evidence, balanced_subset
from fst_lightning.detectors.outlier import Null
from fst_lightning.validate import check_number


class NoiseResponse(Detector):
    r"""Look for a class that images with random triggers go to more often than to all others.

    *How it works.* Noise, waves and patches that are drawn at random resemble many triggers a
    little. A network with a backdoor sends more of the images that it then misclassifies to its
    target class. It needs forward passes only.

    .. math:: s_k = \frac{1 + |\{i : f(x_i) \ne k,\; f(x_i') = k\}|}
        {1 + |\{i : f(x_i) \ne k\}|}

    with the predictions :math:`f` of images :math:`x` and of the same with random triggers,
    :math:`x'`. The null distribution is Student's, for the logarithms.

    Args:
        images: Clean images, at most, 1 or more.
        repeats: Random triggers per image, 1 or more.
        strength: Of the triggers, in [0, 1]; see
            :func:`~fst_lightning.defenses.triggers.random`.

    Shape:
        - images: ``(N, C, H, W)`` float, normalized, with labels ``(N,)``.
        - statistics: ``(K,)``, one per class.

    Raises:
        ValueError: If an argument is out of its range.

    Needs:
        Clean images; their labels are not used.

    Cost:
        One forward pass for each image and each of its ``repeats`` triggers. No gradients.

    When it fails:
        It does not see triggers that need to be exact. Clean networks too have a class that
        disturbed images go to, so that alarms are weak evidence.

    Note:
        Sees broad backdoors that a resemblance wakes up.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
        >>> images = LabeledImages(torch.rand(8, 3, 8, 8), torch.zeros(8, dtype=torch.int64))
        >>> len(NoiseResponse(repeats=2).scan(net, images, torch.Generator()).evidence.statistics)
        5

    References:
        This project's own detector; no paper describes it.

    See Also:
        - :class:`~fst_lightning.detectors.UniversalShift`: searches the direction instead of
          drawing it.
        - :class:`~fst_lightning.detectors.MaximumMargin`: optimizes images instead of drawing
          triggers.
    """

    null: ClassVar[Null | None] = "log_student"

    def __init__(self, images: int = 300, repeats: int = 10, strength: float = 0.5) -> None:
        check_number("images", images, low=1, whole=True)
        check_number("repeats", repeats, low=1, whole=True)
        check_number("strength", strength, high=1)
        self.images = images
        self.repeats = repeats
        self.strength = strength

    @torch.no_grad()
    def measure(
        self,
        net: nn.Module,
        images: LabeledImages,
        num_classes: int,
        generator: torch.Generator,
    ) -> Evidence:
        """Count where the images go."""
        some = balanced_subset(images, self.images, generator)
        pixel_range = PixelRange.of(some)
        moved: list[torch.Tensor] = []
        start: list[torch.Tensor] = []
        for batch, _ in some.batches(100):
            pixels = pixel_range.to_pixels(batch)
            logits = net(batch)
            before = functional.one_hot(logits.argmax(1), logits.shape[1]).bool()
            for _ in range(self.repeats):
                triggered = random_triggers(pixels, strength=self.strength)
                logits = net(pixel_range.to_inputs(triggered).to(batch.dtype))
                after = functional.one_hot(logits.argmax(1), logits.shape[1]).bool()
                moved.append((after & ~before).sum(0))
                start.append((~before).sum(0))
        total = [torch.stack(parts).sum(0).double() for parts in (moved, start)]
        shares = (1 + total[0]) / (1 + total[1])
        return Evidence(shares, {"moved": [round(float(share), 4) for share in shares]})
