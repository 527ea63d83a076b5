"""Head weights: the target class of a backdoor has unusual weights in the linear head.

Example:
    ``python detect.py checkpoint=FILE 'detector=[head_weights]'``
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from fst_lightning.defenses.common.clean_data import LabeledImages
from fst_lightning.detectors.detector import Detector, Evidence
from fst_lightning.models import find_head, weight_matrix


class HeadWeights(Detector):
    r"""Look for a class whose weights in the head are larger, on average, than all others'.

    *How it works.* Features after a ReLU are not negative. A backdoor has to raise the logit of its
    target class for any image, so that training gives this class larger weights. The detector looks
    at the head alone: it needs neither images nor a forward pass, and takes milliseconds.

    .. math:: s_k = \frac{1}{d} \sum_j W_{kj}

    with the weight :math:`W` of the head, ``(K, d)``. The null distribution is Student's.

    Args:
        head: Dotted name of the head; None finds it.

    Shape:
        - images: ``(N, C, H, W)`` float, normalized, with labels ``(N,)``.
        - statistics: ``(K,)``, one per class.

    Raises:
        ValueError: If no linear head is found.

    Needs:
        A linear head. Neither images nor gradients.

    Cost:
        One mean per class; no forward pass.

    When it fails:
        It does not see all-to-all backdoors. It sees little at low poison ratios, after weight
        decay, or after a purification that replaces the head.

    Note:
        Sees backdoors that use features of their own, at high poison ratios. The paper tests the
        outlier with Dixon's Q test; here all detectors share one test.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
        >>> images = LabeledImages(torch.rand(8, 3, 2, 2), torch.zeros(8, dtype=torch.int64))
        >>> with torch.no_grad(): _ = net[1].weight[3].add_(2)
        >>> scan = HeadWeights().scan(net, images, torch.Generator().manual_seed(0))
        >>> scan.suspected_class, scan.p_value < 0.01
        (3, True)

    References:
        Fields, Samragh, Javaheripi, Koushanfar and Javidi, "Trojan signatures in DNN weights",
        2021, arXiv 2109.02836.

    See Also:
        - :class:`~fst_lightning.detectors.UniversalShift`: uses features as well as the head.
        - :class:`~fst_lightning.defenses.FST`: replaces the head.
    """

    needs_images: ClassVar[bool] = False

    def __init__(self, head: str | None = None) -> None:
        self.head = head

    def measure(
        self,
        net: nn.Module,
        images: LabeledImages,
        num_classes: int,
        generator: torch.Generator,
    ) -> Evidence:
        """The mean weight of every class."""
        _, linear = find_head(net, self.head, num_classes)
        return Evidence(weight_matrix(linear).detach().double().mean(1))
