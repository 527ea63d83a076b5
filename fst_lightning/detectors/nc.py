"""Neural Cleanse as a detector: a small patch turns every image into the target class.

Example:
    ``python detect.py checkpoint=FILE 'detector=[nc]'``
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from fst_lightning.defenses.common.clean_data import LabeledImages
from fst_lightning.defenses.common.patch_inversion import invert_triggers
from fst_lightning.defenses.common.pixel_range import PixelRange
from fst_lightning.detectors.detector import Detector, Evidence, balanced_subset
from fst_lightning.detectors.outlier import Null
from fst_lightning.validate import check_number

_GRAY = 0.5
"""What pictures show where a patch leaves the image as it is."""


class SmallestPatch(Detector):
    r"""Look for a class that a smaller patch leads to than to all others.

    *How it works.* For every class, :func:`~fst_lightning.defenses.invert_triggers` finds a mask
    and a pattern that turn clean images into the class, and shrinks the mask. For the target class
    of a patch backdoor a few pixels are enough. ``defense=nc`` unlearns what this search finds.

    .. math:: s_k = 1 / \|m_k\|_1

    with the mask :math:`m_k`. If a class has no mask that works, its mask counts as the whole
    image. The null distribution is Student's, for the logarithms.

    Args:
        images: Clean images to search with, at most, 1 or more.
        rounds: Of the search, at most, 1 or more.
        steps: Of Adam in a round, 1 or more.
        batch_size: Images per step, 1 or more.
        success: Share of the images that a patch has to turn into its class, in (0, 1].
        restarts: Searches from different random starts, 1 or more.

    Shape:
        - images: ``(N, C, H, W)`` float, normalized, with labels ``(N,)``.
        - statistics: ``(K,)``, one per class.

    Raises:
        ValueError: If an argument is out of its range.

    Needs:
        Clean images; their labels are not used.

    Cost:
        ``restarts`` searches per class, so that the cost grows with the number of classes.

    When it fails:
        It does not see triggers that cover the whole image faintly, warps, sample-specific triggers
        and all-to-all backdoors.

    Note:
        Sees patches and other triggers that a few pixels imitate. The paper's anomaly index is in
        the details of the result; the p-value is ours.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
        >>> images = LabeledImages(torch.rand(8, 3, 2, 2), torch.zeros(8, dtype=torch.int64))
        >>> scan = SmallestPatch(rounds=2, steps=2).scan(net, images, torch.Generator())
        >>> sorted(scan.evidence.details)
        ['anomaly_index', 'norms', 'success']

    References:
        Wang, Yao, Shan, Li, Viswanath, Zheng and Zhao, "Neural Cleanse: Identifying and mitigating
        backdoor attacks in neural networks", IEEE S&P 2019,
        https://doi.org/10.1109/SP.2019.00031

    See Also:
        - :class:`~fst_lightning.defenses.NeuralCleanse`: unlearns what this search finds.
        - :class:`~fst_lightning.detectors.InvertedGenerator`: finds triggers that are not patches.
    """

    null: ClassVar[Null | None] = "log_student"

    def __init__(
        self,
        images: int = 300,
        rounds: int = 15,
        steps: int = 10,
        batch_size: int = 16,
        success: float = 0.98,
        restarts: int = 1,
    ) -> None:
        check_number("images", images, low=1, whole=True)
        check_number("rounds", rounds, low=1, whole=True)
        check_number("steps", steps, low=1, whole=True)
        check_number("batch_size", batch_size, low=1, whole=True)
        check_number("success", success, low_open=True, high=1)
        check_number("restarts", restarts, low=1, whole=True)
        self.images = images
        self.rounds = rounds
        self.steps = steps
        self.batch_size = batch_size
        self.success = success
        self.restarts = restarts

    def measure(
        self,
        net: nn.Module,
        images: LabeledImages,
        num_classes: int,
        generator: torch.Generator,
    ) -> Evidence:
        """Search the smallest patch of every class."""
        some = balanced_subset(images, self.images, generator)
        found = invert_triggers(
            net,
            some,
            generator,
            rounds=self.rounds,
            steps=self.steps,
            batch_size=self.batch_size,
            success=self.success,
            restarts=self.restarts,
        )
        whole = float(found.masks[0].numel())
        sizes = torch.where(found.working(self.success), found.norms, whole)
        details = {
            "anomaly_index": [round(float(value), 4) for value in found.index],
            "norms": [round(float(value), 4) for value in found.norms],
            "success": [round(float(value), 4) for value in found.rates],
        }
        statistics = 1 / sizes.double().clamp_min(1e-3)
        suspected = int(statistics.argmax())
        mask, pattern = found.masks[suspected], found.patterns[suspected]
        pixel_range = PixelRange.of(some)

        def stamp(batch: Tensor) -> Tensor:
            patch = pixel_range.to_inputs(pattern)
            return torch.lerp(batch.float(), patch, mask.expand_as(patch)).to(batch.dtype)

        pictures = torch.lerp(torch.full_like(found.patterns, _GRAY), found.patterns, found.masks)
        return Evidence(statistics, details, pictures, stamp)
