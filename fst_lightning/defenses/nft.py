"""Neural fine-tuning with masks (NFT): rescale channels a little, on mixed clean images.

Karim, Al Arafat, Khalid, Guo and Rahnavard, "Augmented neural fine-tuning for efficient backdoor
purification", ECCV 2024, arXiv 2407.10052.

Example:
    ``python purify.py attack=blended defense=nft``
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.defenses.common.channel_masks import MaskDefense, check_number
from fst_lightning.defenses.common.clean_data import CleanData


class NeuralMaskFineTuning(MaskDefense):
    r"""Tune one mask a channel on MixUp batches; the weights stay as they are.

    .. math:: \min_{m} \lambda\,\mathrm{CE}(f_m(\tilde x), y_a) +
        (1 - \lambda)\,\mathrm{CE}(f_m(\tilde x), y_b) + \frac{\eta}{N_c} \sum |1 - m|,
        \qquad m_l \in [\alpha e^{-\beta l}, 1]

    with :math:`\tilde x = \lambda x_a + (1 - \lambda) x_b`, :math:`\lambda \sim
    \mathrm{Beta}(a, a)`, and :math:`N_c` clean images a class. The floor falls with the number l of
    the BatchNorm layer, from 1: early layers can change little, deep ones freely. At the end the
    masks are folded into BatchNorm's scales. The network is in evaluation mode meanwhile: the masks
    are fitted to the running statistics that it will be used with, which the published scripts let
    drift.

    Args:
        alpha: of the floor, in [0, 1].
        beta: of the floor, 0 or more.
        eta: weight of the distance from 1, before it is divided by the images a class; 0 or more.
        mixup: a, of the Beta distribution, greater than 0; 1 is the uniform one.

    Raises:
        ValueError: for an argument out of its range; for a network without BatchNorm.

    Example:
        >>> [round(NeuralMaskFineTuning().floor(number), 4) for number in (1, 2, 3)]
        [0.4852, 0.2943, 0.1785]
    """

    batch_statistics: ClassVar[bool] = False
    images_per_class: Tensor
    """:math:`N_c`, a scalar; 1 before the clean images are known."""

    def __init__(
        self,
        alpha: float = 0.8,
        beta: float = 0.5,
        eta: float = 0.001,
        mixup: float = 1.0,
    ) -> None:
        super().__init__()
        check_number("alpha", alpha, high=1)
        check_number("beta", beta)
        check_number("eta", eta)
        check_number("mixup", mixup, low_open=True)
        self.alpha = alpha
        self.beta = beta
        self.eta = eta
        self.mixup = mixup
        self.register_buffer("images_per_class", torch.ones(()))

    def alpha_range(self, net: nn.Module) -> tuple[float, float]:
        """From 1, the highest floor, to 0.01: masks that hardly have one can change the most."""
        return 1.0, 0.01

    def study(self, net: nn.Module, clean: CleanData, generator: torch.Generator) -> None:
        """Count the images a class."""
        classes = len(set(clean.labels.tolist()))
        self.images_per_class = self.images_per_class.new_tensor(len(clean) / classes)

    def loss(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """The cross-entropy of a batch that is mixed with itself in another order."""
        share = float(torch.distributions.Beta(self.mixup, self.mixup).sample())
        order = torch.randperm(len(images)).to(images.device)
        logits = net(share * images + (1 - share) * images[order])
        return share * functional.cross_entropy(logits, labels) + (
            1 - share
        ) * functional.cross_entropy(logits, labels[order])

    def penalty(self) -> Tensor | None:
        r""":math:`\eta / N_c \sum |1 - m|` over all masks; None where :math:`\eta` is 0."""
        if self.eta == 0:
            return None
        distance = torch.stack([(1 - mask.mask).abs().sum() for mask in self._masks.values()]).sum()
        return self.eta * distance / self.images_per_class

    def floor(self, number: int) -> float:
        r"""The least mask of a layer, :math:`\alpha e^{-\beta l}`; layers count from 1."""
        return self.alpha * math.exp(-self.beta * number)

    def conclude(self, net: nn.Module, clean: CleanData, generator: torch.Generator) -> None:
        """Note what the masks have become."""
        masks = {name: mask.mask.detach().float() for name, mask in self._masks.items()}
        self._found = {
            "masked_channels": sum(len(mask) for mask in masks.values()),
            "halved_channels": sum(int((mask < 0.5).sum()) for mask in masks.values()),
            "mean_mask": {name: round(float(mask.mean()), 4) for name, mask in masks.items()},
        }

    def findings(self) -> dict[str, Any]:
        """The mean mask of every layer, and how many channels lost more than half."""
        return super().findings()
