"""Linear mode connectivity: the line from the backdoored weights to the purified ones.

Min et al., "Uncovering, explaining, and mitigating the superficial safety of backdoor defense",
NeurIPS 2024, arXiv 2410.09838.

Example:
    ``python purify.py attack=blended defense=fst robustness=[connectivity]``
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from fst_lightning.defenses.common.snapshot import restore, snapshot
from fst_lightning.defenses.common.whole_set import batchnorms, recompute_batchnorm
from fst_lightning.robustness.check import RobustnessCheck, Subject, rates_of
from fst_lightning.validate import check_number


class LinearConnectivity(RobustnessCheck):
    r"""Measure the networks between the backdoored and the purified one.

    .. math:: \theta(t) = (1 - t)\,\theta_{\text{backdoored}} + t\,\theta_{\text{purified}}

    If a backdoor is gone, it is missing along most of the line; if it is still present shortly
    before the end, it is near. BatchNorm statistics of the ends do not fit the weights between
    them. They are therefore recomputed at each point, including both ends, on the same clean
    training images.

    Args:
        points: Number of evenly spaced points, including both ends, 2 or more.
        images: Clean training images for the BatchNorm statistics, 2 or more.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> LinearConnectivity().points
        21
    """

    def __init__(self, points: int = 21, images: int = 1000) -> None:
        check_number("points", points, low=2, whole=True)
        check_number("images", images, low=2, whole=True)
        self.points = points
        self.images = images

    def run(self, subject: Subject, generator: torch.Generator) -> dict[str, Any]:
        """Measure all points, starting from the backdoored network."""
        start, end = snapshot(subject.backdoored), snapshot(subject.purified)
        net = copy.deepcopy(subject.purified)
        order = torch.randperm(len(subject.train), generator=generator)
        clean = subject.train.subset(order[: self.images])
        recomputes = any(norm.running_mean is not None for norm in batchnorms(net).values())
        places = [point / (self.points - 1) for point in range(self.points)]
        rates = []
        for t in places:
            restore(net, torch.lerp(start, end, t))
            if recomputes:
                recompute_batchnorm(net, clean)
            rates.append(rates_of(net, subject))
        return {
            "t": places,
            "ca": [rate.ca for rate in rates],
            "asr": [rate.asr for rate in rates],
            "ra": [rate.ra for rate in rates],
            "batchnorm_images": len(clean) if recomputes else None,
        }
