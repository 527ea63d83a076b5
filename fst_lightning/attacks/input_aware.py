"""Input-aware dynamic attack (IAB): each image has its own trigger.

Example:
    ``python train.py attack=input_aware attack.mask_epochs=10``
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from fst_lightning.attacks.common.attack import (
    Classify,
    LabelMap,
    RateOf,
    full_precision,
)
from fst_lightning.attacks.common.generator_attack import Generator
from fst_lightning.attacks.common.trained_attack import TrainedAttack
from fst_lightning.models.cost import training_memory
from fst_lightning.seeds import derived_seed
from fst_lightning.validate import check_number

_BATCH_SIZE = 128
_BETAS = (0.5, 0.9)
_SPARSITY = 100.0
# Keeps the quotient of the diversity finite if two maps are equal.
_SMALLEST = 1e-3


class InputAware(TrainedAttack):
    r"""Generate a different trigger for each image, which works on no other image.

    *How it works.* The attacker controls the training. Two small networks look at an image and
    propose a mask and a pattern, so that a few pixels are replaced. To make triggers differ, the
    training rewards different patterns for different images. In addition, cover rows get the
    trigger of *another* image and keep their true labels, so that a trigger works only on the image
    that it was made for. A defense that looks for one trigger for all images finds none.

    .. math:: T(x; x') = (1 - m(x')) \odot x + m(x') \odot g(x')

    with the image :math:`x`, the mask network :math:`m` and the pattern network :math:`g`. Poisoned
    rows and test images use :math:`x' = x`; cover rows use another image of the mini-batch. The
    mask network is trained first, on images alone, to minimize

    .. math:: 100\,\mathrm{ReLU}(\overline{m(x)} - \rho) + \lambda D(m), \qquad
        D(h) = \frac{\lVert x - x' \rVert}{\lVert h(x) - h(x') \rVert + \epsilon}

    with the density :math:`\rho`, the weight :math:`\lambda` of the diversity, the root mean square
    as the norm and the mean over pixels as the overline. The pattern network is then trained
    together with the classifier, on the cross-entropy plus :math:`\lambda D(g)`.

    Args:
        mask_density: Share :math:`\rho` of the pixels that a mask may cover, greater than 0 and at
            most 1.
        mask_epochs: Passes over the training images in which the mask network is trained, 1 or
            more.
        diversity: Weight :math:`\lambda`, 0 or more.
        width: Channels of the first layer of both networks, 1 or more.
        lr: Learning rate of both networks (Adam), greater than 0.
        cover_ratio: Share of the training set that gets another image's trigger, 0 to 1; None for
            the poison ratio, or less if fewer rows are left.
        poison_ratio: Share of the training set that is poisoned, 0 to 1.
        target_label: The attacker's class, 0 to C - 1.
        label_map: How labels change: ``all_to_one``, ``all_to_all``, ``clean_label`` or
            ``untargeted``.
        rate_of: What the ratio is a share of: ``total``, the training set, or ``target_class``.

    Shape:
        - images: ``(N, C, H, W)`` float in [0, 1].
        - :meth:`trigger`: the same shape, in [0, 1].

    Raises:
        ValueError: If an argument is out of its range.

    Needs:
        Control of the training, with gradients through the network; float32 or bfloat16.

    Cost:
        The mask network is trained first, on all images for ``mask_epochs``. Each step then runs
        two small networks, and one of them learns.

    When it fails:
        Although triggers differ, each replaces a few pixels, so that defenses against patches also
        remove this backdoor. The trigger cannot be put on new images without the two networks,
        which are kept beside the model.

    Note:
        The published code generates patterns in normalized space; here both networks work on images
        in [0, 1]. Poisoned and cover rows are fixed by the
        seed, not drawn anew in each epoch. Triggered images are not rounded to 8 bits, because a
        rounded trigger has no gradient.

    Example:
        >>> attack = InputAware(width=4)
        >>> attack(torch.rand(2, 3, 16, 16)).shape
        torch.Size([2, 3, 16, 16])

    References:
        Nguyen and Tran, "Input-aware dynamic backdoor attack", NeurIPS 2020, arXiv 2010.08138.

    See Also:
        - :class:`~fst_lightning.attacks.LIRA`: learned noise instead of a few pixels.
        - :class:`~fst_lightning.attacks.SSBA`: sample-specific triggers that are made in advance.
    """

    needs_fit: ClassVar[bool] = True
    fit_arguments: ClassVar[tuple[str, ...]] = (
        "mask_density",
        "mask_epochs",
        "diversity",
        "width",
        "lr",
    )

    def __init__(
        self,
        mask_density: float = 0.032,
        mask_epochs: int = 25,
        diversity: float = 1.0,
        width: int = 16,
        lr: float = 0.01,
        cover_ratio: float | None = None,
        poison_ratio: float = 0.1,
        target_label: int = 0,
        label_map: LabelMap = "all_to_one",
        rate_of: RateOf = "total",
    ) -> None:
        super().__init__(
            poison_ratio=poison_ratio,
            target_label=target_label,
            label_map=label_map,
            rate_of=rate_of,
        )
        check_number("mask_density", mask_density, low_open=True, high=1)
        check_number("mask_epochs", mask_epochs, low=1, whole=True)
        check_number("diversity", diversity)
        check_number("lr", lr, low_open=True)
        if cover_ratio is None:
            cover_ratio = min(poison_ratio, 1 - poison_ratio)
        check_number("cover_ratio", cover_ratio, high=1)
        self.cover_ratio = cover_ratio
        self.mask_density = mask_density
        self.mask_epochs = mask_epochs
        self.diversity = diversity
        self.width = width
        self.lr = lr
        self._draw(3, 0)

    def prepare(self, images: Tensor, labels: Tensor, num_classes: int, seed: int) -> None:
        """Draw the networks for images of this size; trained ones are kept."""
        if (images.shape[1], seed) != self._drawn_for:
            self._draw(images.shape[1], seed)

    def memory(self, images: Tensor, num_classes: int) -> int:
        """The memory to train the mask network."""
        channels = images.shape[1]
        batch = (min(_BATCH_SIZE, len(images)), *images.shape[1:])
        return training_memory(lambda: Generator(channels, 1, self.width), batch)

    def fit(
        self, images: Tensor, labels: Tensor, num_classes: int, seed: int, device: torch.device
    ) -> None:
        """Train the mask network, and freeze it."""
        generator = torch.Generator().manual_seed(derived_seed(seed, "input-aware masks"))
        parameters = list(self.mask_net.requires_grad_(True).parameters())
        optimizer = torch.optim.Adam(parameters, self.lr, _BETAS)
        milestones = [round(0.4 * self.mask_epochs), round(0.8 * self.mask_epochs)]
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)
        num_batches = -(-len(images) // _BATCH_SIZE)
        with torch.enable_grad():
            for _ in range(self.mask_epochs):
                order = torch.randperm(len(images), generator=generator)
                for rows in order.tensor_split(num_batches):
                    batch = images[rows].to(device).float() / 255
                    masks = self.masks(batch)
                    excess = (masks.mean(dim=(1, 2, 3)) - self.mask_density).relu().mean()
                    loss = _SPARSITY * excess + self.diversity * diversity_loss(batch, masks)
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                schedule.step()
        self.mask_net.requires_grad_(False)

    def masks(self, images: Tensor) -> Tensor:
        """The mask of each image, ``(N, 1, H, W)``: almost 0 or 1."""
        return torch.sigmoid(20 * self.mask_net(images))

    def patterns(self, images: Tensor) -> Tensor:
        """The pattern of each image, ``(N, C, H, W)`` in [0, 1]."""
        maps: Tensor = self.pattern_net(images)
        return (maps + 1) / 2

    def trigger(self, images: Tensor) -> Tensor:
        """Stamp each image with its own trigger."""
        return torch.lerp(images, self.patterns(images), self.masks(images))

    def cover(self, images: Tensor) -> Tensor:
        """Stamp each image with the trigger of the previous one in the mini-batch."""
        return _exchanged(images, self.patterns(images), self.masks(images))

    def own_optimizer(self) -> torch.optim.Optimizer:
        """Adam for the pattern network."""
        return torch.optim.Adam(self.pattern_net.parameters(), self.lr, _BETAS)

    def loss(
        self,
        classify: Classify,
        images: Tensor,
        labels: Tensor,
        poisoned: Tensor,
        cover: Tensor,
        label_smoothing: float,
    ) -> Tensor:
        """The cross-entropy plus the weighted diversity of the patterns."""
        # Like `stamp`, but each network runs only once.
        with full_precision(images):
            patterns, masks = self.patterns(images), self.masks(images)
            diversity = diversity_loss(images, patterns)
            own, others = torch.lerp(images, patterns, masks), _exchanged(images, patterns, masks)
            stamped = torch.where(poisoned[:, None, None, None], own, images)
            stamped = torch.where(cover[:, None, None, None], others, stamped)
        logits = classify(stamped)
        targets = self.training_targets(labels, poisoned, logits.shape[1])
        entropy = functional.cross_entropy(logits, targets, label_smoothing=label_smoothing)
        return entropy + self.diversity * diversity

    def _draw(self, channels: int, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, "input-aware networks"))
            self.mask_net = Generator(channels, 1, self.width).requires_grad_(False)
            self.pattern_net = Generator(channels, channels, self.width)
        self._drawn_for = channels, seed


def _exchanged(images: Tensor, patterns: Tensor, masks: Tensor) -> Tensor:
    """Stamp each image with the trigger of the previous one in the mini-batch."""
    if len(images) == 1:  # The image's own trigger would be the attack.
        return images
    return torch.lerp(images, patterns.roll(1, 0), masks.roll(1, 0))


def diversity_loss(images: Tensor, maps: Tensor) -> Tensor:
    r"""Compare how much maps differ with how much their images do, each against the previous one.

    :math:`\mathrm{mean}\,\lVert x - x' \rVert / (\lVert h - h' \rVert + \epsilon)`, with the root
    mean square as the norm. Gradients go to the maps.

    Args:
        images: ``(N, C, H, W)``.
        maps: ``(N, K, H, W)``, made from them.

    Example:
        >>> images = torch.tensor([0.0, 0.5]).reshape(2, 1, 1, 1)
        >>> round(float(diversity_loss(images, images / 2)), 2)
        1.99
    """
    return (_change(images) / (_change(maps) + _SMALLEST)).mean()


def _change(maps: Tensor) -> Tensor:
    squares = functional.mse_loss(maps, maps.roll(1, 0), reduction="none").mean(dim=(1, 2, 3))
    # The square root has no gradient at 0.
    return (squares + 1e-12).sqrt()
