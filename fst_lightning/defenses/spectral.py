"""Spectral signatures: poisoned rows stand out along the main direction of their class.

Example:
    ``python purify.py attack=blended defense=spectral``
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fst_lightning.defenses.common.clean_data import PoisonedData
from fst_lightning.defenses.common.dataset_defense import DatasetDefense
from fst_lightning.defenses.common.features import all_features
from fst_lightning.models import find_head
from fst_lightning.validate import check_number


class SpectralSignatures(DatasetDefense):
    r"""Suspect the rows of each class that lie furthest out along its main direction.

    *How it works.* Poisoned rows have the target label, but their features differ from those of
    real images of the target class. Such a mixture is stretched along the line between the two
    groups. The defense finds the direction in which the features of a class vary most and removes
    the rows that lie furthest out along it. A fresh network is trained on the rest.

    .. math:: \tau_i = \langle r_i - \bar r, v \rangle^2

    with the features :math:`r_i` in front of the head for row :math:`i`, their mean :math:`\bar r`
    over all rows with the same delivered label, and the top right singular vector :math:`v` of the
    centered rows.

    Args:
        share: Share of the rows of each class that is suspected, greater than 0 and less than 1.
        head: Dotted name of the linear head; None finds it.

    Shape:
        - images: ``(N, C, H, W)``, the training set as it was delivered.
        - labels: ``(N,)`` int64, as delivered.
        - :meth:`suspects`: ``(N,)`` bool.

    Raises:
        ValueError: If an argument is out of its range, no linear head is found, or the head takes
            more than one feature vector per image.

    Needs:
        The training set as it was delivered, and a linear head that takes one feature vector per
        image. No clean images.

    Cost:
        One pass over the training set, one singular value decomposition per class, and the training
        of a fresh network.

    When it fails:
        If a class holds a larger share of poisoned rows than ``share``, some stay. If poisoned
        features mix with clean ones, the main direction is one of the clean task, and clean rows
        are removed.

    Note:
        The paper removes 1.5 times a known poison ratio. Here the ratio is unknown, so that clean
        classes lose the same share as poisoned ones.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        >>> images = torch.rand(20, 3, 2, 2)
        >>> images[:2] += 3
        >>> found = SpectralSignatures(share=0.1).suspects(
        ...     net, PoisonedData(images, torch.zeros(20).long()), torch.Generator()
        ... )
        >>> found.nonzero().flatten().tolist()
        [0, 1]

    References:
        Tran, Li and Madry, "Spectral signatures in backdoor attacks", NeurIPS 2018, arXiv
        1811.00636 (Algorithm 1).

    See Also:
        - :class:`~fst_lightning.defenses.ActivationClustering`: clusters instead of one direction.
        - :class:`~fst_lightning.defenses.AntiBackdoorLearning`: finds rows by their loss.
    """

    def __init__(self, share: float = 0.15, head: str | None = None) -> None:
        super().__init__()
        check_number("share", share, low_open=True, high=1, high_open=True)
        self.share = share
        self.head = head

    @property
    def needs_head(self) -> bool:
        """True: it looks at the features in front of the head."""
        return True

    def suspects(
        self, net: nn.Module, poisoned: PoisonedData, generator: torch.Generator
    ) -> Tensor:
        """The rows with the largest scores of each class, ``(N,)`` bool."""
        features = all_features(net, find_head(net, self.head)[1], poisoned)
        labels = poisoned.labels
        found = torch.zeros_like(labels, dtype=torch.bool)
        for label in range(int(labels.max()) + 1):
            rows = (labels == label).nonzero().flatten()
            count = round(self.share * len(rows))
            if not count:
                continue
            found[rows[spectral_scores(features[rows]).topk(count).indices]] = True
        return found


def spectral_scores(features: Tensor) -> Tensor:
    """The squared length of each centered row along the direction of greatest variance.

    Args:
        features: ``(n, d)`` with at least one row.

    Returns:
        ``(n,)``, 0 or more, float64.

    Example:
        >>> spectral_scores(torch.tensor([[-1.0, 0.0], [-1.0, 0.0], [2.0, 0.0]])).round().tolist()
        [1.0, 1.0, 4.0]
    """
    centered = features.double() - features.double().mean(0)
    _, _, directions = torch.linalg.svd(centered, full_matrices=False)
    scores: Tensor = (centered @ directions[0]).square()
    return scores
