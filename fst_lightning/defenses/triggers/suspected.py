"""The base class of sources that recover one trigger per class and use those that stand out."""

from __future__ import annotations

import torch
from torch import Tensor

from fst_lightning.defenses.common.outstanding import outstanding_classes
from fst_lightning.defenses.triggers.source import Classifier, TriggerSource
from fst_lightning.validate import check_number


class SuspectedClassTriggers(TriggerSource):
    """Puts the triggers of suspected classes on images, drawn at random; none if there are none.

    *How it works.* A class is suspected if its trigger is far smaller than those of the others
    (:func:`~fst_lightning.defenses.common.outstanding.outstanding_classes`). A subclass overrides
    :attr:`sizes` and :meth:`put`.

    Args:
        share: Share of the images of each mini-batch that get a trigger, in [0, 1].
        ratio: A class is suspected below this share of the median size, in (0, 1).

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(self, share: float, ratio: float) -> None:
        super().__init__(share)
        check_number("ratio", ratio, low_open=True, high=1, high_open=True)
        self.ratio = ratio

    @property
    def sizes(self) -> Tensor:
        """The size of the trigger of each class, ``(K,)``; empty before :meth:`study`."""
        raise NotImplementedError

    def put(self, images: Tensor, classes: Tensor) -> Tensor:
        """Put the trigger of ``classes[i]`` on image i.

        Args:
            images: ``(N, C, H, W)`` float32 in [0, 1].
            classes: ``(N,)`` int64.
        """
        raise NotImplementedError

    @property
    def ready(self) -> bool:
        """Whether the classes were searched."""
        return len(self.sizes) > 0

    @property
    def suspected(self) -> Tensor:
        """The classes whose trigger is far smaller than those of the others, ``(n,)``."""
        return outstanding_classes(self.sizes, self.ratio)

    def forward(self, images: Tensor, labels: Tensor, classify: Classifier) -> Tensor:
        """Put triggers on a share of the images; none if no class is suspected."""
        if len(self.suspected) == 0:
            return images
        return super().forward(images, labels, classify)

    def trigger(self, images: Tensor, labels: Tensor, classify: Classifier) -> Tensor:
        """Put the trigger of a suspected class on every image."""
        suspected = self.suspected
        drawn = suspected[torch.randint(len(suspected), (len(images),), device=suspected.device)]
        return self.put(images.float(), drawn)
