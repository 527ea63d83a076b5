"""BTI-DBF: recover a trigger by decoupling benign features, and unlearn it.

Xu, Huang, Li, Wang, Hu, Cui and Liu, "Towards reliable and efficient backdoor trigger inversion via
decoupling benign features", ICLR 2024.

Example:
    ``python purify.py attack=blended defense=bti_dbf defense.rounds=1``
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.defenses.common.channel_masks import check_number
from fst_lightning.defenses.common.features import head_inputs
from fst_lightning.defenses.common.trigger_generator import InvertingDefense


class BTIDBF(InvertingDefense):
    r"""Tune on clean and on triggered images, both with true labels.

    .. math:: \mathrm{CE}(f([x, g(x_T)]), [y, y_T]) +
        \beta\,\mathrm{MSE}(\phi(g(x_T)), \phi(x_T)), \quad T \text{ a share of the batch}

    The generator g comes from
    :class:`~fst_lightning.defenses.common.trigger_generator.InvertingDefense`. The clean features
    are a constant there: the triggered ones are drawn to them. The paper replaces a tenth of the
    images, by Adam with lr 1e-4 for 5 times 30 epochs; here triggered images come besides the clean
    ones, and the optimizer and the epochs are those of ``tuning``.

    Args:
        feature_weight: :math:`\beta`, 0 or more.
        stamp_ratio: triggered images of a batch, as a share of it, in [0, 1].
        rounds: inversions, 1 or more.
        round_epochs: epochs from one to the next, 1 or more.
        mask_steps: of Adam for the mask, 1 or more.
        generator_epochs: passes over the clean images for the generator, in every round, 1 or more.
        generator_lr: of Adam for the generator, greater than 0.
        generator_width: its channels at half of the resolution, 1 or more.
        batch_size: images a step of the generator, 2 or more.
        image_bound: the largest mean squared change of a pixel, in units of [0, 1], above 0.
        feature_bound: the largest change of benign features, relative to all features, above 0.
        head: dotted name of the linear head; None finds it.

    Raises:
        ValueError: for an argument out of its range; for a network whose head does not get one
            vector an image.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
        >>> defense = BTIDBF()
        >>> defense.prepare(net, torch.Generator())
        >>> images, labels = torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 2, 0])
        >>> loss = defense.loss(net, images, labels)  # without a generator plain cross-entropy
        >>> bool(loss == functional.cross_entropy(net(images), labels))
        True
    """

    def __init__(
        self,
        feature_weight: float = 1.0,
        stamp_ratio: float = 0.2,
        rounds: int = 1,
        round_epochs: int = 3,
        mask_steps: int = 20,
        generator_epochs: int = 5,
        generator_lr: float = 2e-3,
        generator_width: int = 16,
        batch_size: int = 32,
        image_bound: float = 0.005,
        feature_bound: float = 3.0,
        head: str | None = None,
    ) -> None:
        super().__init__(
            stamp_ratio,
            rounds,
            round_epochs,
            mask_steps,
            generator_epochs,
            generator_lr,
            generator_width,
            batch_size,
            image_bound,
            feature_bound,
            head,
        )
        check_number("feature_weight", feature_weight)
        self.feature_weight = feature_weight

    def loss(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy on both kinds of images, and the distance of their features."""
        count = self.num_stamped(images)
        both = torch.cat([self.triggered(images[:count]), images])
        with head_inputs(self.linear) as features:
            logits = net(both)
        loss = functional.cross_entropy(logits, torch.cat([labels[:count], labels]))
        if count == 0 or self.feature_weight == 0:
            return loss
        triggered, clean = features[0][:count], features[0][count : 2 * count]
        return loss + self.feature_weight * functional.mse_loss(triggered, clean.detach())
