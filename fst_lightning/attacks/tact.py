"""Targeted contamination attack (TaCT): a patch that works on images of one class only.

Example:
    ``python train.py attack=tact attack.source_label=3 attack.cover_labels=[5,7]``
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fst_lightning.attacks.badnets import BadNets, Corner, Patch
from fst_lightning.attacks.common.attack import LabelMap, RateOf
from fst_lightning.validate import check_number, check_numbers


class TaCT(BadNets):
    r"""Stamp a patch that changes the answer for one source class and for no other.

    *How it works.* Many defenses look for a trigger that works on every image. Here the patch
    changes the answer only for images of a source class: these get the target label in training.
    Images of other classes with the same patch, the cover rows, keep their true labels. The network
    therefore learns the combination of class and patch, and its features of triggered images mix
    with those of clean ones.

    .. math:: T(x) = (1 - m) \odot x + m \odot \delta, \qquad
        f(T(x)) = t \;\text{only for}\; y = s

    with the image :math:`x` of class :math:`y`, the mask :math:`m`, the pattern :math:`\delta`, the
    network :math:`f`, the source class :math:`s` and the target class :math:`t`.

    Args:
        source_label: Source class :math:`s`, 0 to C - 1; not the target.
        cover_labels: Classes of cover rows, neither source nor target; None for all of these.
        patch: The drawn patch: ``square`` (white) or ``checkerboard`` (black and white pixels).
        patch_size: Side of the patch in pixels of a 32-pixel image, 1 or more; scales with the
            image.
        corner: Where the patch is: ``top_left``, ``top_right``, ``bottom_left`` or
            ``bottom_right``.
        margin: Pixels between the patch and the border, 0 or more, in a 32-pixel image.
        image: Path of a picture to use instead of the drawn patch, with its transparency.
        opacity: Opacity of the patch, 0 to 1.
        cover_ratio: Share of the training set that is cover, 0 to 1.
        poison_ratio: Share of the training set that is poisoned, 0 to 1.
        target_label: The attacker's class, 0 to C - 1.
        label_map: How labels change: ``all_to_one``, ``all_to_all``, ``clean_label`` or
            ``untargeted``.
        rate_of: What the ratio is a share of: ``total``, the training set, or ``target_class``.

    Shape:
        - images: ``(N, C, H, W)`` float in [0, 1].
        - :meth:`trigger`: the same shape, in [0, 1].

    Raises:
        ValueError: If an argument is out of its range, or if source, target and cover classes
            overlap.
        FileNotFoundError: If ``image`` does not exist.

    Needs:
        Write access to images and labels of the source class, and to images of the cover classes.

    Cost:
        One masked copy per mini-batch; nothing before the training.

    When it fails:
        The network has to learn the combination of class and patch, which takes more epochs than a
        patch alone. With too few cover rows, the patch works on other classes too and is easier to
        find.

    Note:
        The attack success rate counts test images of the source class only. The poison ratio is a
        share of the whole training set and at most the share of the source class in it; the only
        label map is ``all_to_one``.

    Example:
        >>> attack = TaCT(source_label=1, target_label=0)
        >>> attack.counts_for_asr(torch.tensor([0, 1, 2, 1])).tolist()
        [False, True, False, True]

    References:
        Tang, Wang, Tang and Zhang, "Demon in the variant: Statistical analysis of DNNs for robust
        backdoor contamination detection", USENIX Security 2021, arXiv 1908.00686.

    See Also:
        - :class:`~fst_lightning.attacks.BadNets`: the same patch, for all classes.
        - :class:`~fst_lightning.attacks.AdaptivePatch`: cover images with faint patches.
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
        )
        check_number("cover_ratio", cover_ratio, high=1)
        covers = None if cover_labels is None else tuple(cover_labels)
        check_number("source_label", source_label, whole=True)
        if covers:
            check_numbers("cover_labels", covers, whole=True)
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
        """Refuse source, target and cover labels that do not exist.

        Raises:
            ValueError: If a label is not below the number of classes; names the valid ones.
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
