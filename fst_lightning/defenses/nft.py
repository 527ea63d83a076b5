"""Neural mask fine-tuning (NFT): rescale channels a little, on mixed clean images.

Example:
    ``python purify.py attack=blended defense=nft``
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.defenses.common.channel_masks import MaskDefense
from fst_lightning.defenses.common.clean_data import CleanData
from fst_lightning.validate import check_number


class NeuralMaskFineTuning(MaskDefense):
    r"""Tune one mask per channel on mixed clean images, and keep the weights.

    *How it works.* All weights are frozen, and each channel gets a factor between a floor and 1.
    These factors are trained on clean images, so that channels that only the backdoor needs can
    fade. Few parameters are trained, so that few images suffice. Two measures keep the clean
    accuracy: images are mixed with each other (MixUp), which works like more data, and the floor is
    high in early layers, so that only deep layers change much.

    .. math:: \min_{m} \lambda\,\mathrm{CE}(f_m(\tilde x), y_a) +
        (1 - \lambda)\,\mathrm{CE}(f_m(\tilde x), y_b) + \frac{\eta}{N_c} \sum |1 - m|,
        \qquad m_l \in [\alpha e^{-\beta l}, 1]

    with the network :math:`f` with masks :math:`m`, the mixed image
    :math:`\tilde x = \lambda x_a + (1 - \lambda) x_b` of two images with labels :math:`y_a` and
    :math:`y_b`, the share :math:`\lambda \sim \mathrm{Beta}(a, a)`, :math:`N_c` clean images per
    class, and the number :math:`l` of the BatchNorm layer, counted from 1.

    Args:
        alpha: Factor :math:`\alpha` of the floor, 0 to 1.
        beta: Decay :math:`\beta` of the floor, 0 or more.
        eta: Weight :math:`\eta` of the distance from 1, 0 or more.
        mixup: Parameter :math:`a` of the Beta distribution, greater than 0; 1 is uniform.

    Shape:
        - images: ``(N, C, H, W)`` float, normalized.
        - labels: ``(N,)`` int64.

    Raises:
        ValueError: If an argument is out of its range, or the network has no BatchNorm layer.

    Needs:
        Clean images with true labels, and BatchNorm layers with a scale.

    Cost:
        One forward and backward pass per step; only the masks are trained.

    When it fails:
        The floor hardly lets early layers change, so that a backdoor in their channels stays. With
        few steps the masks stay close to 1 and most of a backdoor remains.

    Note:
        The network stays in evaluation mode, so that the masks fit the running statistics of the
        final network; in the public scripts these statistics drift. The masks are folded into the
        scales of BatchNorm at the end.

    Example:
        >>> [round(NeuralMaskFineTuning().floor(number), 4) for number in (1, 2, 3)]
        [0.4852, 0.2943, 0.1785]

    References:
        Karim, Al Arafat, Khalid, Guo and Rahnavard, "Augmented neural fine-tuning for efficient
        backdoor purification", ECCV 2024, arXiv 2407.10052.

    See Also:
        - :class:`~fst_lightning.defenses.AdversarialNeuronPruning`: masks that are used for
          pruning.
        - :class:`~fst_lightning.defenses.NeuralPolarizer`: trains one added layer instead of masks.
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
        """From 1, the highest floor, to 0.01, where masks can change the most."""
        return 1.0, 0.01

    def study(self, net: nn.Module, clean: CleanData, generator: torch.Generator) -> None:
        """Count the images per class."""
        classes = len(set(clean.labels.tolist()))
        self.images_per_class = self.images_per_class.new_tensor(len(clean) / classes)

    def loss(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """The cross-entropy of a mini-batch that is mixed with itself in another order."""
        share = float(torch.distributions.Beta(self.mixup, self.mixup).sample())
        order = torch.randperm(len(images)).to(images.device)
        logits = net(share * images + (1 - share) * images[order])
        return share * functional.cross_entropy(logits, labels) + (
            1 - share
        ) * functional.cross_entropy(logits, labels[order])

    def penalty(self) -> Tensor | None:
        r""":math:`\eta / N_c \sum |1 - m|` over all masks; None if :math:`\eta` is 0."""
        if self.eta == 0:
            return None
        distance = torch.stack([(1 - mask.mask).abs().sum() for mask in self.masks.values()]).sum()
        return self.eta * distance / self.images_per_class

    def floor(self, number: int) -> float:
        r"""The smallest mask of a layer, :math:`\alpha e^{-\beta l}`; layers count from 1."""
        return self.alpha * math.exp(-self.beta * number)

    def conclude(self, net: nn.Module, clean: CleanData, generator: torch.Generator) -> None:
        """Record the learned masks."""
        masks = {name: mask.mask.detach().float() for name, mask in self.masks.items()}
        self._found = {
            "masked_channels": sum(len(mask) for mask in masks.values()),
            "halved_channels": sum(int((mask < 0.5).sum()) for mask in masks.values()),
            "mean_mask": {name: round(float(mask.mean()), 4) for name, mask in masks.items()},
        }

    def findings(self) -> dict[str, Any]:
        """The mean mask of each layer, and the number of channels that lost more than half."""
        return super().findings()
