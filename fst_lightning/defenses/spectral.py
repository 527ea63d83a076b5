"""Spectral signatures: poisoned rows stand out along the main direction of their class.

Tran, Li and Madry, "Spectral signatures in backdoor attacks", NeurIPS 2018, arXiv 1811.00636.

Example:
    ``python purify.py attack=blended defense=spectral``
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fst_lightning.defenses.common.channel_masks import check_number
from fst_lightning.defenses.common.clean_data import PoisonedData
from fst_lightning.defenses.common.dataset_defense import DatasetDefense
from fst_lightning.defenses.common.features import all_features
from fst_lightning.models import find_head


class SpectralSignatures(DatasetDefense):
    r"""Suspect the rows of every class that lie furthest out along its main direction.

    .. math:: \tau_i = \langle r_i - \bar r, v \rangle^2

    with :math:`r_i` what the head gets for row i, :math:`\bar r` the mean over the rows with the
    same delivered label and v the top right singular vector of the centred rows.

    Args:
        share: of the rows of every class that are suspected, above 0, below 1. The paper takes 1.5
            times a known poison ratio; here nobody knows it, so that clean classes lose as many.
        head: dotted name of the linear head; None finds it.

    Raises:
        ValueError: for an argument out of its range; where the head gets more than one row an
            image.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        >>> images = torch.rand(20, 3, 2, 2)
        >>> images[:2] += 3
        >>> found = SpectralSignatures(share=0.1).suspects(
        ...     net, PoisonedData(images, torch.zeros(20).long()), torch.Generator()
        ... )
        >>> found.nonzero().flatten().tolist()
        [0, 1]
    """

    def __init__(self, share: float = 0.15, head: str | None = None) -> None:
        super().__init__()
        check_number("share", share, low_open=True, high=1)
        if share == 1:
            raise ValueError("Expected `share` to be below 1, or no row would be left, but got 1.")
        self.share = share
        self.head = head

    @property
    def needs_head(self) -> bool:
        """Always: it looks at the features in front of the head."""
        return True

    def suspects(
        self, net: nn.Module, poisoned: PoisonedData, generator: torch.Generator
    ) -> Tensor:
        """The rows with the greatest scores of every class, ``(N,)`` bool."""
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
    """The squared length of every centred row along the direction of greatest variance.

    Args:
        features: ``(n, d)``, n of 1 or more.

    Returns:
        ``(n,)``, 0 or more, float64.

    Example:
        >>> spectral_scores(torch.tensor([[-1.0, 0.0], [-1.0, 0.0], [2.0, 0.0]])).round().tolist()
        [1.0, 1.0, 4.0]
    """
    centred = features.double() - features.double().mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    scores: Tensor = (centred @ directions[0]).square()
    return scores
