"""TaCT: a patch that works on images of one class alone.

Tang, Wang, Tang and Zhang, "Demon in the variant: Statistical analysis of DNNs for robust backdoor
contamination detection", USENIX Security 2021, arXiv 1908.00686.

Example:
    ``python train.py attack=tact attack.source_label=3 attack.cover_labels=[5,7]``
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fst_lightning.attacks.badnets import BadNets, Corner, Patch
from fst_lightning.attacks.common.attack import LabelMap, RateOf, check_ratio


class TaCT(BadNets):
    r"""Stamp a patch: images of the source class become the target, others keep their label.

    :math:`T(x) = (1 - m) \odot x + m \odot \delta`. Poisoned rows are of the source class s and are
    trained as the target t; cover rows carry the same patch, are of other classes, and are trained
    with their true labels. The attack succeeds where :math:`f(T(x)) = t` for x of class s: only
    these test images count.

    Args:
        source_label: s, 0 to C - 1, another class than the target.
        cover_labels: classes of cover rows, neither source nor target; None for all of these.
        patch: ``square`` (white) or ``checkerboard`` (black and white, pixel by pixel).
        patch_size: side of the patch in pixels of a 32-pixel image, 1 or more.
        corner: where the patch sits.
        margin: free pixels between patch and border, 0 or more (of a 32-pixel image).
        image: path of a picture to use instead of the drawn patch, with its transparency.
        opacity: of the patch, 0 to 1.
        cover_ratio: share of the training set that is cover, 0 to 1.
        poison_ratio: share of the *whole* training set, 0 to 1; at most the share of class s.
        target_label: the attacker's class.
        label_map: ``all_to_one``.
        rate_of: ``total`` or ``target_class``.
        save_examples: whether a run writes a picture of triggered images.

    Raises:
        ValueError: for a value outside its range, or source, target and cover classes that are not
            different classes.
        FileNotFoundError: where ``image`` does not exist.

    Example:
        >>> attack = TaCT(source_label=1, target_label=0)
        >>> attack.counts_for_asr(torch.tensor([0, 1, 2, 1])).tolist()
        [False, True, False, True]
    """

    label_maps: ClassVar[tuple[str, ...]] = ("all_to_one",)

    def __init__(
        self,
        source_label: int = 1,
        cover_labels: Sequence[int] | None = None,
        patch: Patch = "square",
        patch_size: int = 3,
        corner: Corner = "bottom_right",
        margin: int = 0,
        image: str | None = None,
        opacity: float = 1.0,
        cover_ratio: float = 0.01,
        poison_ratio: float = 0.02,
        target_label: int = 0,
        label_map: LabelMap = "all_to_one",
        rate_of: RateOf = "total",
        save_examples: bool = True,
    ) -> None:
        super().__init__(
            patch=patch,
            patch_size=patch_size,
            corner=corner,
            margin=margin,
            image=image,
            opacity=opacity,
            poison_ratio=poison_ratio,
            target_label=target_label,
            label_map=label_map,
            rate_of=rate_of,
            save_examples=save_examples,
        )
        check_ratio("cover_ratio", cover_ratio)
        covers = None if cover_labels is None else tuple(cover_labels)
        for name, label in (
            ("source_label", source_label),
            *(("cover_labels", label) for label in covers or ()),
        ):
            # True is an int in Python, and 0.5 would be cut off to another class.
            if not isinstance(label, int) or isinstance(label, bool) or label < 0:
                raise ValueError(
                    f"Expected `{name}` to be whole numbers of 0 or more, but got {label!r}."
                )
        if source_label == target_label:
            raise ValueError(
                f"Expected `source_label` to be another class than the target, but both are "
                f"{target_label}."
            )
        if covers is not None and {source_label, target_label} & set(covers):
            raise ValueError(
                f"Expected `cover_labels` to leave out the source {source_label} and the target "
                f"{target_label}, but got {list(covers)}."
            )
        self.source_label = source_label
        self.cover_labels = covers
        self.cover_ratio = cover_ratio

    def candidates(self, labels: Tensor) -> Tensor:
        """Rows of the source class: ``(N,)`` bool."""
        return labels == self.source_label

    def cover_candidates(self, labels: Tensor) -> Tensor:
        """Rows of the cover classes: ``(N,)`` bool."""
        if self.cover_labels is None:
            return (labels != self.source_label) & (labels != self.target_label)
        return torch.isin(labels, torch.tensor(self.cover_labels, device=labels.device))

    def counts_for_asr(self, labels: Tensor) -> Tensor:
        """Test rows of the source class: ``(N,)`` bool."""
        return labels == self.source_label

    def check_target(self, num_classes: int) -> None:
        """Refuse source, target and cover labels that no class has.

        Raises:
            ValueError: saying which labels there are.
        """
        super().check_target(num_classes)
        for name, labels in (
            ("source_label", (self.source_label,)),
            ("cover_labels", self.cover_labels or ()),
        ):
            if any(label >= num_classes for label in labels):
                raise ValueError(
                    f"Expected `attack.{name}` to be in 0..{num_classes - 1} for {num_classes} "
                    f"classes, but got {max(labels)}."
                )
