"""The interface of a detector, and what a scan finds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fst_lightning.attacks import draw_balanced_rows
from fst_lightning.defenses.common.clean_data import LabeledImages
from fst_lightning.defenses.common.whole_set import keep_modes, seeded
from fst_lightning.detectors.outlier import ALARM, Null, outlier_p_value, outlier_threshold

FEWEST_CLASSES = 4
"""With fewer classes, the others say too little about what is usual."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a detector measured on a network.

    Attributes:
        statistics: One number per class, ``(K,)``; the larger, the more suspicious.
        details: Plain values for ``results.json``.
        pictures: What the detector found for every class, ``(K, C, H, W)`` in [0, 1]: a trigger,
            or the image that the class is most sure of; None if there is nothing to show.
        trigger: Puts the recovered trigger of the class with the largest statistic on images that
            are normalized, ``(N, C, H, W)`` to the same; None if no trigger was recovered.
    """

    statistics: Tensor
    details: dict[str, Any] = field(default_factory=dict)
    pictures: Tensor | None = None
    trigger: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True, eq=False)
class Scan:
    """What a detector says about a network.

    Attributes:
        evidence: What it measured.
        score: How far the largest statistic stands out, on a scale that networks of one
            architecture share; larger is more suspicious.
        p_value: The probability of so large an outlier on a network without a backdoor, by the
            detector's own null distribution; None if it has none.
        suspected_class: The class with the largest statistic.
        threshold: The statistic from which the p-value is an alarm; None without a null
            distribution.
    """

    evidence: Evidence
    score: float
    p_value: float | None
    suspected_class: int
    threshold: float | None = None


class Detector(ABC):
    r"""Decide from a network, and perhaps a few clean images, whether it has a backdoor.

    A detector measures one statistic per class. A backdoor makes the statistic of its target class
    stand out: :func:`~fst_lightning.detectors.outlier.outlier_p_value` compares the largest one
    with the others. A detector has no access to test images, triggers or the attack.

    Another detector is a subclass in its own file that implements :meth:`measure`, and a YAML
    file in ``conf/detector/``.
    """

    needs_images: ClassVar[bool] = True
    """Whether it looks at the clean images, and not only at their shape and value range."""

    null: ClassVar[Null | None] = "student"
    """The null distribution of the statistics; None if only reference networks can tell."""

    @abstractmethod
    def measure(
        self,
        net: nn.Module,
        images: LabeledImages,
        num_classes: int,
        generator: torch.Generator,
    ) -> Evidence:
        """Measure a statistic of every class.

        Args:
            net: The network, in evaluation mode, on the device of the images; not changed.
            images: Clean images with true labels.
            num_classes: How many classes the network has, K.
            generator: A CPU generator, the only source of random numbers.
        """

    def scan(self, net: nn.Module, images: LabeledImages, generator: torch.Generator) -> Scan:
        """Measure, and compare the largest statistic with the others.

        Args:
            net: The network, on the device of the images; not changed, and afterwards in the modes
                that it has now.
            images: Clean images with true labels.
            generator: A CPU generator, the only source of random numbers.

        Raises:
            ValueError: If the network has fewer than 4 classes, or gives NaN or infinity.
        """
        with keep_modes(net), seeded(generator, images.device):
            net.eval()
            num_classes = check_network(net, images)
            evidence = self.measure(net, images, num_classes, generator)
        statistics = evidence.statistics.double().cpu()
        if statistics.shape != (num_classes,) or not bool(torch.isfinite(statistics).all()):
            raise ValueError(
                f"Expected {type(self).__name__} to measure {num_classes} finite numbers, one per "
                f"class, but got {statistics.tolist()}."
            )
        suspected = int(statistics.argmax())
        if self.null is None:
            return Scan(evidence, float(statistics[suspected]), None, suspected)
        p_value = outlier_p_value(statistics, self.null)
        threshold = outlier_threshold(statistics, self.null, ALARM)
        return Scan(evidence, surprise(p_value), p_value, suspected, threshold)


def balanced_subset(images: LabeledImages, count: int, generator: torch.Generator) -> LabeledImages:
    """At most ``count`` of the images, drawn at random, equally many of each class, up to one.

    Args:
        images: Clean images, in any order.
        count: How many to draw, 1 or more.
        generator: A CPU generator; not used if there are no more images than that.

    Example:
        >>> images = LabeledImages(torch.zeros(6, 3, 2, 2), torch.tensor([0, 0, 1, 1, 2, 2]))
        >>> balanced_subset(images, 3, torch.Generator().manual_seed(0)).labels
        tensor([0, 1, 2])
    """
    if count >= len(images):
        return images
    return images.subset(draw_balanced_rows(images.labels.cpu(), count, generator))


def surprise(p_value: float) -> float:
    r"""A p-value as a score, :math:`-\log_{10} p`, at most 16.

    Example:
        >>> surprise(0.001)
        3.0
    """
    return -torch.tensor(max(p_value, 1e-16), dtype=torch.float64).log10().item() + 0.0


@torch.no_grad()
def check_network(net: nn.Module, images: LabeledImages) -> int:
    """Refuse a network that cannot be scanned.

    Returns:
        The number of classes.

    Raises:
        ValueError: If its weights or logits are not finite, or it has fewer than 4 classes.
    """
    for name, value in net.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ValueError(f"Expected finite weights, but `{name}` has NaN or infinity.")
    batch, _ = next(images.batches(8))
    logits = net(batch)
    if logits.dim() != 2 or not bool(torch.isfinite(logits).all()):
        raise ValueError(
            f"Expected finite logits (N, K), but got shape {tuple(logits.shape)}"
            + ("." if logits.dim() != 2 else " with NaN or infinity.")
        )
    num_classes = int(logits.shape[1])
    check_num_classes(num_classes)
    return num_classes


def check_num_classes(num_classes: int) -> None:
    """Refuse fewer than 4 classes.

    Raises:
        ValueError: If there are fewer.
    """
    if num_classes < FEWEST_CLASSES:
        raise ValueError(
            f"Expected a network with {FEWEST_CLASSES} classes or more, but it has {num_classes}: "
            "one class cannot stand out from so few others."
        )
