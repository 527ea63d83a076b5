"""FLARE: poisoned rows are abnormal in some BatchNorm layer, and form their own cluster.

Example:
    ``python purify.py attack=blended defense=flare``
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fst_lightning.defenses.common.channel_masks import watch_inputs
from fst_lightning.defenses.common.clean_data import LabeledImages, PoisonedData
from fst_lightning.defenses.common.dataset_defense import DatasetDefense
from fst_lightning.defenses.common.whole_set import require_batchnorm
from fst_lightning.validate import check_number

_EPSILON = 1e-5
_NEAR = 1e-4  # Cut slightly before a split, in units of lambda.

Array = np.ndarray[Any, np.dtype[Any]]


class FLARE(DatasetDefense):
    r"""Suspect all rows outside the largest stable cluster of their BatchNorm scores.

    *How it works.* Poisoned rows look unusual somewhere in the network, but not always in the last
    layer. For each row and each BatchNorm layer, the defense scores how unlikely the most unusual
    input value is, given the running statistics. It maps these scores to a plane and clusters them.
    If a cluster is stable, the largest one counts as clean and rows of all other clusters are
    removed. A fresh network is trained on the rest. Labels are not used, so that it covers
    all-to-all attacks.

    .. math:: s_l(x) = \min_{c, h, w} \log \mathcal{N}(a_{l, c, h, w}(x);
        \mu_{l, c}, \sigma_{l, c}^2 + 10^{-5})

    with the input :math:`a_l` of BatchNorm layer :math:`l` for image :math:`x`, in channel
    :math:`c` at position :math:`(h, w)`, and the running mean :math:`\mu` and variance
    :math:`\sigma^2`. UMAP maps the scores :math:`(s_1, \dots, s_{L - k})` to a plane, and HDBSCAN
    clusters them, for :math:`k = 0, 1, \dots` last layers left out, until a cluster is stable: it
    is the first one, going down from the root to the larger child each time, that exists over more
    than ``stability`` of :math:`\lambda = 1 / \text{distance}`.

    Args:
        stability: Range :math:`\xi` of :math:`\lambda` over which a stable cluster exists, 0 or
            more.
        depth: Levels of the tree that are searched, 1 or more.
        min_cluster_size: Rows of the smallest cluster, 2 or more; fewer poisoned rows are not
            found.
        neighbors: Neighbors of UMAP, 2 or more.
        batch_size: Images per mini-batch, 1 or more; the result does not depend on it.

    Shape:
        - images: ``(N, C, H, W)``, the training set as it was delivered.
        - labels: ``(N,)`` int64, as delivered.
        - :meth:`suspects`: ``(N,)`` bool.

    Raises:
        ValueError: If an argument is out of its range, or the network has no BatchNorm layer.
        ImportError: If umap-learn or hdbscan is missing: ``pip install 'fst-lightning[flare]'``.

    Needs:
        The training set as it was delivered, BatchNorm layers, and the packages umap-learn and
        hdbscan. No clean images.

    Cost:
        One pass over the training set. UMAP and HDBSCAN then run once per number of left-out layers
        until a cluster is stable; UMAP uses one thread. A fresh network is trained at the end.

    When it fails:
        Fewer than ``min_cluster_size`` poisoned rows are not found. If no cluster is stable,
        nothing is suspected and the backdoor stays. If clean rows form several clusters, all but
        the largest are lost.

    Note:
        The paper's abstract calls the cluster with the *higher stability* the poisoned one. The
        public code cuts the tree at the first stable cluster and calls the *largest* cluster clean,
        and so does this class, because the size of a cluster needs no further definition. On
        backdoored networks of the digits, both rules suspected the same cluster if stability is the
        range of :math:`\lambda` over which a cluster exists. They differed with HDBSCAN's own
        stability, a sum over the rows of a cluster: it is largest for the large clean cluster, so
        that the clean rows would be removed. Rows that belong to no cluster stay in the training
        set.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm2d(3)).eval()
        >>> images = PoisonedData(torch.zeros(4, 3, 2, 2), torch.zeros(4, dtype=torch.int64))
        >>> batchnorm_scores(net, images).shape  # rows by BatchNorm layers
        torch.Size([4, 1])

    References:
        Hou et al., "FLARE: Toward universal dataset purification against backdoor attacks", IEEE
        TIFS 2025, arXiv 2411.19479.

    See Also:
        - :class:`~fst_lightning.defenses.ActivationClustering`: clusters the last features of a
          class.
        - :class:`~fst_lightning.defenses.EntropyPruning`: looks for unusual channels instead of
          rows.
    """

    scores: Tensor
    """The scores, ``(N, L)``; empty before they are computed."""

    def __init__(
        self,
        stability: float = 0.02,
        depth: int = 3,
        min_cluster_size: int = 100,
        neighbors: int = 40,
        batch_size: int = 500,
    ) -> None:
        super().__init__()
        check_number("stability", stability)
        check_number("depth", depth, low=1, whole=True)
        check_number("min_cluster_size", min_cluster_size, low=2, whole=True)
        check_number("neighbors", neighbors, low=2, whole=True)
        check_number("batch_size", batch_size, low=1, whole=True)
        self.stability = stability
        self.depth = depth
        self.min_cluster_size = min_cluster_size
        self.neighbors = neighbors
        self.batch_size = batch_size
        self.register_buffer("scores", torch.empty(0))
        self.register_buffer("layers_used", torch.tensor(0))
        require_packages()

    layers_used: Tensor
    """Number of BatchNorm layers with which the clusters were found; 0 if none were found."""

    def prepare(self, net: nn.Module, generator: torch.Generator) -> None:
        """Refuse a network without BatchNorm."""
        require_batchnorm(net, "FLARE")

    def suspects(
        self, net: nn.Module, poisoned: PoisonedData, generator: torch.Generator
    ) -> Tensor:
        """The rows of all clusters except the largest one, ``(N,)`` bool."""
        self.scores = batchnorm_scores(net, poisoned, self.batch_size)
        self.layers_used = torch.tensor(0)
        seed = int(torch.randint(2**31, (), generator=generator))
        found = np.zeros(len(poisoned), dtype=bool)
        if len(poisoned) >= 2 * self.min_cluster_size:
            for used in range(self.scores.shape[1], 0, -1):
                split = self._split(self.scores[:, :used].double().numpy(), seed)
                if split is not None:
                    self.layers_used, found = torch.tensor(used), split
                    break
        return torch.from_numpy(found)

    def _split(self, scores: Array, seed: int) -> Array | None:
        """The rows outside the largest cluster; None if no cluster is stable."""
        import umap  # slow to import

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # UMAP warns that a seed means one thread
            plane = umap.UMAP(
                n_neighbors=min(self.neighbors, len(scores) - 1), min_dist=0.0, random_state=seed
            ).fit_transform(scores)
        return outside_stable_cluster(plane, self.min_cluster_size, self.stability, self.depth)

    def findings(self) -> dict[str, Any]:
        """The number of suspected rows, and of the layers that were used."""
        layers = self.scores.shape[1] if self.scores.ndim == 2 else 0
        return {
            **super().findings(),
            "batchnorm_layers": layers,
            "layers_used": int(self.layers_used),
        }


def require_packages() -> None:
    """Refuse to go on without the packages of the extra.

    Raises:
        ImportError: If one is missing; says how to install it.
    """
    missing = [name for name in ("umap", "hdbscan") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"Expected the packages umap-learn and hdbscan for defense=flare, but "
            f"{' and '.join(missing)} can't be imported; pip install 'fst-lightning[flare]'."
        )


def batchnorm_scores(net: nn.Module, images: LabeledImages, batch_size: int = 500) -> Tensor:
    """The smallest log-likelihood of each image in each BatchNorm layer of a network.

    Args:
        net: The network, in evaluation mode.
        images: The images, N of them.
        batch_size: Images per mini-batch.

    Returns:
        ``(N, L)`` float32 on the CPU, without layers that have no running statistics or are not
        called once per image.
    """
    norms = {
        name: norm
        for name, norm in require_batchnorm(net, "FLARE").items()
        if norm.running_mean is not None and norm.running_var is not None
    }
    found: dict[str, list[Tensor]] = {name: [] for name in norms}
    size = [0]  # of the current mini-batch

    def sized() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in images.batches(batch_size):
            size[0] = len(batch[0])
            yield batch

    def look(name: str, values: Tensor) -> None:
        mean, variance = norms[name].running_mean, norms[name].running_var
        assert mean is not None
        assert variance is not None
        if values.shape[1] % size[0] == 0:
            # The least likely value of a channel is the one farthest from its mean.
            distances = (values - mean.float()[:, None]).abs_().reshape(len(values), size[0], -1)
            spread = variance.float()[:, None] + _EPSILON
            squares = distances.amax(2).square() / spread
            likely = -0.5 * (squares + torch.log(2 * math.pi * spread))
            found[name].append(likely.amin(0).cpu())

    watch_inputs(net, norms, sized(), look)
    columns = [torch.cat(parts) for parts in found.values() if parts]
    return torch.stack([column for column in columns if len(column) == len(images)], dim=1)


def outside_stable_cluster(
    points: Array, min_cluster_size: int, stability: float, depth: int
) -> Array | None:
    r"""Cut a cluster tree at the first stable cluster.

    Args:
        points: ``(n, 2)``.
        min_cluster_size: Smallest cluster of HDBSCAN.
        stability: Range of :math:`\lambda` over which a cluster has to exist.
        depth: Levels below the root that are searched.

    Returns:
        ``(n,)`` bool, the members of all clusters except the largest; None if no cluster is stable.
    """
    import hdbscan

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = hdbscan.HDBSCAN(min_cluster_size=min_cluster_size).fit(
            np.asarray(points, dtype=np.float64)
        )
    tree = fitted.condensed_tree_.to_numpy()
    cut = stable_cut(tree, stability, depth)
    if cut is None:
        return None
    labels = fitted.single_linkage_tree_.get_clusters(cut, min_cluster_size=min_cluster_size)
    sizes = np.bincount(labels[labels >= 0], minlength=1)
    return np.asarray((labels >= 0) & (labels != sizes.argmax()))


def stable_cut(tree: Array, stability: float, depth: int) -> float | None:
    r"""The distance at which to cut a tree so that its first stable large cluster is complete.

    A cluster exists from the :math:`\lambda` at which it leaves its parent to the one at which it
    splits. If it never splits, it exists until its last point leaves.

    Args:
        tree: Rows (parent, child, lambda_val, child_size) of hdbscan's condensed tree; a child of
            size 1 is a point.
        stability: Range of :math:`\lambda` over which it has to exist.
        depth: Levels below the root that are searched.

    Returns:
        A distance; None if no cluster is stable.
    """
    node = int(tree["parent"].min())
    for _ in range(depth):
        parts = tree[(tree["parent"] == node) & (tree["child_size"] > 1)]
        if not len(parts):
            return None
        largest = parts[parts["child_size"].argmax()]
        node, born = int(largest["child"]), float(largest["lambda_val"])
        below = tree[tree["parent"] == node]
        splits = below["lambda_val"][below["child_size"] > 1]
        ends = splits if len(splits) else below["lambda_val"][np.isfinite(below["lambda_val"])]
        died = float(ends.max()) if len(ends) else born
        if died - born > stability:
            if len(splits):
                return 1 / (died - _NEAR)
            return 1 / (born + min(stability, died - born) / 2)
    return None
