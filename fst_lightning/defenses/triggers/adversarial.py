"""Perturbations that fool the network as it is while it is tuned."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fst_lightning.defenses.i_bau import project
from fst_lightning.defenses.triggers.source import Classifier, TriggerSource
from fst_lightning.validate import check_number


class AdversarialTriggers(TriggerSource):
    r"""Put one perturbation that fools the current network on all chosen images of a mini-batch.

    *How it works.* In each step, one perturbation for all chosen images is found by gradient ascent
    on the cross-entropy of the network as it is at this moment:

    .. math:: \max_{\|\delta\|_2 \le C} \frac{1}{N} \sum_i \mathrm{CE}(f(x_i + \delta), y_i)

    with the radius C. A perturbation that fools a network on many images at once resembles a
    trigger, and tuning on it with true labels unlearns it. It follows the network: what was
    unlearned is not found again.

    Args:
        share: Share of the images of each mini-batch that are perturbed, in [0, 1].
        radius: :math:`C`, the largest Euclidean norm of the perturbation, in units of [0, 1] over
            all pixels, greater than 0.
        steps: Steps of the search, 1 or more; each is a forward and a backward pass.

    Shape:
        Images ``(N, C, H, W)`` float in [0, 1].

    Raises:
        ValueError: If an argument is out of its range.

    Note:
        I-BAU searches on the whole clean set once per epoch and follows the implicit
        hypergradient. Here the search is new in every step and the perturbation is a constant of
        the loss, so that the source works under any defense.

    Example:
        >>> source = AdversarialTriggers(share=1.0, radius=1.0, steps=1)
        >>> images, labels = torch.full((2, 1, 4, 4), 0.5), torch.tensor([0, 0])
        >>> classify = lambda x: torch.stack([x.mean((1, 2, 3)), 1 - x.mean((1, 2, 3))], dim=1)
        >>> bool((source(images, labels, classify) < images).all())  # away from class 0
        True

    References:
        Zeng, Chen, Park, Mao, Jin and Jia, "Adversarial unlearning of backdoors via implicit
        hypergradient", ICLR 2022, arXiv 2110.03735, Eq. 1.

    See Also:
        - :class:`~fst_lightning.defenses.ImplicitUnlearning`: the defense with the hypergradient.
        - :class:`~fst_lightning.defenses.SharedAdversarialUnlearning`: one perturbation per image.
    """

    def __init__(self, share: float = 0.2, radius: float = 3.0, steps: int = 3) -> None:
        super().__init__(share)
        check_number("radius", radius, low_open=True)
        check_number("steps", steps, low=1, whole=True)
        self.radius = radius
        self.steps = steps

    def trigger(self, images: Tensor, labels: Tensor, classify: Classifier) -> Tensor:
        """Put the perturbation on every image."""
        delta = torch.zeros_like(images[:1])
        stride = 2 * self.radius / self.steps
        for _ in range(self.steps):
            delta.requires_grad_()
            with torch.enable_grad():
                loss = functional.cross_entropy(classify((images + delta).clamp(0, 1)), labels)
                (slope,) = torch.autograd.grad(loss, delta)
            with torch.no_grad():
                direction = functional.normalize(slope.float().flatten(), dim=0).view_as(slope)
                delta = project(delta + stride * direction.to(delta.dtype), self.radius)
        return (images + delta.detach()).clamp(0, 1)
