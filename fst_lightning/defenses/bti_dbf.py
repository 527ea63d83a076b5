"""Backdoor trigger inversion by decoupling benign features (BTI-DBF): unlearn a recovered trigger.

Example:
    ``python purify.py attack=blended defense=bti_dbf defense.rounds=1``
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.defenses.common.features import vectors
from fst_lightning.defenses.common.trigger_generator import InvertingDefense
from fst_lightning.models import inputs_of
from fst_lightning.validate import check_number


class BTIDBF(InvertingDefense):
    r"""Recover a trigger with a generator, and unlearn it by tuning with true labels.

    *How it works.* A backdoored network keeps some features for the clean task and others for the
    trigger. The defense first learns a mask that separates the two. A small generator network then
    learns to change images so that the benign features stay and the others move, which reproduces
    the effect of the trigger without knowing the target class. Finally, the network is fine-tuned
    on clean images and on generated ones. Both carry their true labels, so the network unlearns the
    trigger.

    .. math:: \mathrm{CE}(f([x, g(x_T)]), [y, y_T]) +
        \beta\,\mathrm{MSE}(\phi(g(x_T)), \phi(x_T))

    with the network :math:`f`, its features :math:`\phi`, the generator :math:`g` and the triggered
    share :math:`T` of a mini-batch. The clean features :math:`\phi(x_T)` are constants: only the
    features of triggered images are pulled.

    Args:
        feature_weight: Weight :math:`\beta` of the distance between features, 0 or more.
        stamp_ratio: Number of triggered images as a share of the mini-batch, 0 to 1.
        rounds: Number of inversions, 1 or more.
        round_epochs: Epochs between two inversions, 1 or more.
        mask_steps: Steps of Adam for the mask, 1 or more.
        generator_epochs: Passes over the clean images in which the generator learns, for each
            inversion; 1 or more.
        generator_lr: Learning rate of the generator (Adam), greater than 0.
        generator_width: Channels of the generator at half of the resolution, 1 or more.
        batch_size: Images per step of the generator, 2 or more.
        image_bound: Largest mean squared change of a pixel, in units of [0, 1], greater than 0.
        feature_bound: Largest change of benign features, relative to all features, greater than 0.
        head: Dotted name of the linear head; None finds it.

    Shape:
        - images: ``(N, C, H, W)`` float, normalized.
        - labels: ``(N,)`` int64.

    Raises:
        ValueError: If an argument is out of its range, or if the head does not take one feature
            vector per image.

    Needs:
        Clean images with true labels, and a linear head that takes one feature vector per image.

    Cost:
        Each inversion takes ``mask_steps`` steps and ``generator_epochs`` passes over the clean
        images, whatever the number of classes. Steps of the tuning have ``stamp_ratio`` more
        images.

    When it fails:
        For small patches, sinusoids and triggers that differ from image to image, the generator
        often finds a perturbation of another class, and the backdoor stays. An all-to-all attack is
        covered only in part, because the generator learns one trigger for all classes.

    Note:
        The paper replaces a tenth of each mini-batch by triggered images and trains with Adam at a
        learning rate of 1e-4 for 5 inversions of 30 epochs each. Here triggered images are added to
        the clean ones, so that no clean image is lost, and ``tuning`` sets the optimizer and the
        epochs.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
        >>> defense = BTIDBF()
        >>> defense.prepare(net, torch.Generator())
        >>> images, labels = torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 2, 0])
        >>> loss = defense.loss(net, images, labels)  # without a generator plain cross-entropy
        >>> bool(loss == functional.cross_entropy(net(images), labels))
        True

    References:
        Xu, Huang, Li, Wang, Hu, Cui and Liu, "Towards reliable and efficient backdoor trigger
        inversion via decoupling benign features", ICLR 2024,
        https://openreview.net/forum?id=Tw9wemV6cb

    See Also:
        - :class:`~fst_lightning.defenses.PathAwareMinimization`: the same inversion, with a step
          towards the backdoored weights.
        - :class:`~fst_lightning.defenses.NeuralCleanse`: inverts a patch for each class.
        - :class:`~fst_lightning.detectors.InvertedGenerator`: the same inversion as a detector.
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
            stamp_ratio=stamp_ratio,
            rounds=rounds,
            round_epochs=round_epochs,
            mask_steps=mask_steps,
            generator_epochs=generator_epochs,
            generator_lr=generator_lr,
            generator_width=generator_width,
            batch_size=batch_size,
            image_bound=image_bound,
            feature_bound=feature_bound,
            head=head,
        )
        check_number("feature_weight", feature_weight)
        self.feature_weight = feature_weight

    def loss(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """The cross-entropy on all images, and the distance of triggered from clean features."""
        count = self.num_stamped(images)
        both = torch.cat([self.triggered(images[:count]), images])
        with inputs_of(self.linear) as inputs:
            logits = net(both)
        loss = functional.cross_entropy(logits, torch.cat([labels[:count], labels]))
        if count == 0 or self.feature_weight == 0:
            return loss
        features = vectors(inputs[0])
        triggered, clean = features[:count], features[count : 2 * count]
        return loss + self.feature_weight * functional.mse_loss(triggered, clean.detach())
