"""Universal feature shift: the smallest one that sends all images to a class.

Example:
    ``python detect.py checkpoint=FILE 'detector=[universal]'``
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from fst_lightning.defenses.common.clean_data import LabeledImages
from fst_lightning.defenses.common.features import all_features
from fst_lightning.detectors.detector import Detector, Evidence, balanced_subset
from fst_lightning.detectors.outlier import Null
from fst_lightning.models import find_head, weight_matrix
from fst_lightning.validate import check_number


class UniversalShift(Detector):
    r"""Look for a class that a smaller shift of the features leads to than to all others.

    *How it works.* A backdoor gives its target class a direction in feature space along which any
    image reaches it. For every class, a quadratic program finds the shortest vector that, added to
    the features of a few images, puts all of them into the class. It needs one forward pass.

    .. math:: s_k = 1 / \|\sigma_k\|, \qquad \sigma_k = \arg\min_\sigma \|\sigma\|^2
        \;\text{s.t.}\; (w_k - w_j)^T (\sigma + z_i) + b_k - b_j \ge 0 \quad \forall i, j

    with the rows :math:`w` and biases :math:`b` of the head and the features :math:`z`. The null
    distribution is Student's, for the logarithms.

    Args:
        images: Clean images, at most, 1 or more. The cost grows with images times classes.
        head: Dotted name of the head; None finds it.

    Shape:
        - images: ``(N, C, H, W)`` float, normalized, with labels ``(N,)``.
        - statistics: ``(K,)``, one per class.

    Raises:
        ValueError: If an argument is out of its range, if no head is found, or if it takes more
            than one vector per image.

    Needs:
        A few clean images, and a linear head that takes one feature vector per image.

    Cost:
        One forward pass over the images and one least-squares problem per class.

    When it fails:
        It does not see all-to-all backdoors, and networks whose classes differ much in their
        margins mislead it.

    Note:
        Sees backdoors with a feature direction of their own, whatever the trigger looks like. The
        program is solved as a least distance problem (Lawson and Hanson, 1974, chapter 23).

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
        >>> images = LabeledImages(torch.rand(8, 3, 2, 2), torch.zeros(8, dtype=torch.int64))
        >>> scan = UniversalShift().scan(net, images, torch.Generator())
        >>> len(scan.evidence.details["norms"])
        5

    References:
        "Detecting and purifying backdoors with a quadratic program in feature space", 2025, arXiv
        2511.08944.

    See Also:
        - :class:`~fst_lightning.detectors.HeadWeights`: looks at the head only.
        - :class:`~fst_lightning.defenses.ImplicitUnlearning`: a universal change of pixels.
    """

    null: ClassVar[Null | None] = "log_student"

    def __init__(self, images: int = 50, head: str | None = None) -> None:
        check_number("images", images, low=1, whole=True)
        self.images = images
        self.head = head

    def measure(
        self,
        net: nn.Module,
        images: LabeledImages,
        num_classes: int,
        generator: torch.Generator,
    ) -> Evidence:
        """Solve the program for every class."""
        _, linear = find_head(net, self.head, num_classes)
        some = balanced_subset(images, self.images, generator)
        features = all_features(net, linear, some).double().cpu()
        weight = weight_matrix(linear).detach().double().cpu()
        bias = weight.new_zeros(len(weight)) if linear.bias is None else linear.bias.detach()
        logits = features @ weight.T + bias.double().cpu()
        norms = [
            float(shortest_shift(weight, logits, label).norm()) for label in range(len(weight))
        ]
        scale = float(features.norm(dim=1).mean())
        details = {"norms": [round(norm / scale, 6) if scale else norm for norm in norms]}
        return Evidence(1 / torch.tensor(norms, dtype=torch.float64).clamp_min(1e-6), details)


def shortest_shift(weight: Tensor, logits: Tensor, label: int) -> Tensor:
    r"""The shortest vector that, added to all features, makes a class win.

    Args:
        weight: Of the head, ``(K, d)``.
        logits: Of the images, ``(N, K)``.
        label: The class.

    Returns:
        :math:`\sigma`, ``(d,)``; zero if the class wins already.

    Raises:
        ValueError: If no shift does it, because another class has the same weights.
    """
    from scipy.optimize import nnls

    others = [k for k in range(len(weight)) if k != label]
    directions = (weight[label] - weight[others]).double()
    # Of all images, the one that is furthest from the class decides for each other class.
    distances = (logits[:, others] - logits[:, [label]]).double().amax(0)
    if bool((distances <= 0).all()):
        return torch.zeros(weight.shape[1], dtype=torch.float64)
    # Least distance programming: min |s| with G s >= h is one non-negative least squares problem.
    system = torch.cat([directions.T, distances[None]]).numpy()
    wanted = torch.zeros(len(system), dtype=torch.float64)
    wanted[-1] = 1
    solution, _ = nnls(system, wanted.numpy())
    residual = torch.from_numpy(system @ solution) - wanted
    if abs(float(residual[-1])) < 1e-12:
        raise ValueError(
            f"Expected a shift of the features that leads to class {label}, but there is none: "
            "another class has the same weights in the head."
        )
    return -residual[:-1] / residual[-1]
