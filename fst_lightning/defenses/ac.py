"""Activation clustering (AC): the poisoned rows of a class form a cluster.

Example:
    ``python purify.py attack=blended defense=ac``
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fst_lightning.defenses.common.clean_data import PoisonedData
from fst_lightning.defenses.common.dataset_defense import DatasetDefense
from fst_lightning.defenses.common.features import all_features
from fst_lightning.models import find_head
from fst_lightning.validate import check_choice, check_number

Rule = Literal["smaller", "relative_size", "silhouette"]
_FEWEST = 3  # Smaller clusters say nothing.


class ActivationClustering(DatasetDefense):
    r"""Split each class into two clusters of features, and suspect one of them.

    *How it works.* Poisoned rows have the target label, but their features differ from those of
    real images of the target class. The defense takes the features in front of the head for all
    rows with the same label, reduces their dimension, and splits them into two clusters. A clean
    class is cut in two similar halves; a poisoned one has a small separate cluster. Rows of
    suspected clusters are removed, and a fresh network is trained on the rest.

    .. math:: \min_{C_1, C_2} \sum_{k=1}^{2} \sum_{i \in C_k} \|z_i - \bar z_k\|^2

    with the first principal components :math:`z_i` of the features of row :math:`i`, the two
    clusters :math:`C_k` of a class and their means :math:`\bar z_k`. The rule decides whether the
    smaller cluster is suspected.

    Args:
        rule: The rule. ``smaller`` always suspects the smaller cluster, so that clean classes lose
            up to half of their rows. ``relative_size`` suspects it if it holds less than
            ``threshold`` of the class (0.35 in the paper). ``silhouette`` suspects it if the mean
            silhouette of the split is above ``threshold`` (0.1 to 0.15 in the paper).
        threshold: Threshold of the rule, 0 to 1; ``smaller`` has none.
        components: Principal components, 1 or more; at most the number of features and of rows.
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
        One pass over the training set, one clustering per class, and the training of a fresh
        network.

    When it fails:
        Attacks that poison many classes leave few rows per class to cluster. Attacks whose features
        mix with clean ones, such as Adaptive-Blend or Bypass, form no cluster. If a rule suspects
        clean clusters, the new network has less data.

    Note:
        The paper reduces the dimension by independent component analysis; here principal component
        analysis does so, which needs no iterations.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        >>> images = torch.rand(20, 3, 2, 2)
        >>> images[:3] += 3
        >>> found = ActivationClustering().suspects(
        ...     net, PoisonedData(images, torch.zeros(20).long()), torch.Generator()
        ... )
        >>> found.nonzero().flatten().tolist()
        [0, 1, 2]

    References:
        Chen, Carvalho, Baracaldo, Ludwig, Edwards, Lee, Molloy and Srivastava, "Detecting backdoor
        attacks on deep neural networks by activation clustering", 2018, arXiv 1811.03728.

    See Also:
        - :class:`~fst_lightning.defenses.SpectralSignatures`: one direction instead of clusters.
        - :class:`~fst_lightning.defenses.FLARE`: clusters scores of all layers, without labels.
    """

    def __init__(
        self,
        rule: Rule = "relative_size",
        threshold: float = 0.35,
        components: int = 10,
        head: str | None = None,
    ) -> None:
        super().__init__()
        check_choice("rule", rule, Rule)
        check_number("threshold", threshold, high=1)
        check_number("components", components, low=1, whole=True)
        self.rule = rule
        self.threshold = threshold
        self.components = components
        self.head = head
        self.register_buffer("sizes", torch.empty(0))
        self.register_buffer("silhouettes", torch.empty(0))

    sizes: Tensor
    """``(C,)``, the smaller cluster's share of every class; 0 for one that was not split."""

    silhouettes: Tensor
    """``(C,)``, the mean silhouette of the split; 0 likewise."""

    @property
    def needs_head(self) -> bool:
        """True: it clusters the features in front of the head."""
        return True

    def suspects(
        self, net: nn.Module, poisoned: PoisonedData, generator: torch.Generator
    ) -> Tensor:
        """The rows of the clusters that the rule suspects, ``(N,)`` bool."""
        features = all_features(net, find_head(net, self.head)[1], poisoned)
        labels = poisoned.labels
        seed = int(torch.randint(2**31, (), generator=generator))
        found = torch.zeros(len(labels), dtype=torch.bool)
        classes = int(labels.max()) + 1
        self.sizes, self.silhouettes = torch.zeros(classes), torch.zeros(classes)
        for label in range(classes):
            rows = (labels == label).nonzero().flatten().cpu()
            if len(rows) < 2 * _FEWEST:
                continue
            small, silhouette = split_in_two(
                features[rows.to(features.device)].double().cpu().numpy(), self.components, seed
            )
            self.sizes[label], self.silhouettes[label] = float(small.mean()), silhouette
            if self._suspicious(label):
                found[rows[torch.from_numpy(small)]] = True
        return found

    def _suspicious(self, label: int) -> bool:
        if self.rule == "smaller":
            return True
        if self.rule == "relative_size":
            return float(self.sizes[label]) < self.threshold
        return float(self.silhouettes[label]) > self.threshold

    def findings(self) -> dict[str, Any]:
        """The split of each class."""
        return {
            **super().findings(),
            "smaller_cluster": [round(value, 4) for value in self.sizes.tolist()],
            "silhouette": [round(value, 4) for value in self.silhouettes.tolist()],
        }


def split_in_two(
    features: np.ndarray[Any, np.dtype[np.float64]], components: int, seed: int
) -> tuple[np.ndarray[Any, np.dtype[np.bool_]], float]:
    """Split rows into two clusters.

    Args:
        features: ``(n, d)``.
        components: Principal components to split by.
        seed: Seed of the initial centers.

    Returns:
        ``(n,)`` bool, the smaller cluster, and the mean silhouette of the split, -1 to 1, estimated
        on 2,000 rows if there are more. No row and 0 if all rows are the same.
    """
    from sklearn.cluster import KMeans  # imported here because it is slow
    from sklearn.decomposition import PCA
    from sklearn.metrics import silhouette_score

    if not np.ptp(features, axis=0).any():
        return np.zeros(len(features), dtype=bool), 0.0
    kept = min(components, *features.shape)
    reduced = PCA(kept, random_state=seed).fit_transform(features)
    member = KMeans(2, n_init=10, random_state=seed).fit_predict(reduced).astype(bool)
    small = member if member.sum() * 2 <= len(member) else ~member
    sample = 2000 if len(member) > 2000 else None
    return small, float(silhouette_score(reduced, small, sample_size=sample, random_state=seed))
