"""Label-consistent attack (LC): adversarial images that keep their true labels.

Example:
    ``python train.py attack=label_consistent attack.epsilon=8 attack.rate_of=target_class``
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fst_lightning.attacks.common.attack import LabelMap, RateOf
from fst_lightning.attacks.common.surrogate import (
    Surrogate,
    SurrogateAttack,
    input_gradient,
)
from fst_lightning.seeds import derived_seed
from fst_lightning.validate import check_counts, check_number

_BATCH_SIZE = 256


class LabelConsistent(SurrogateAttack):
    r"""Stamp patches in all four corners of adversarial images of the target class.

    *How it works.* Labels stay true, so that nobody who checks them finds a mistake. But a network
    that recognizes an image without the patch has no reason to learn the patch. The attacker
    therefore makes the images hard to recognize: an adversarial change, computed on a clean network
    of the attacker, removes the evidence for the class. The patch is then the easiest evidence
    left. At test time, the patch alone is added, without an adversarial change.

    .. math:: x' = \arg\max_{\|x' - x\|_\infty \leq \varepsilon} \mathrm{CE}(s(x'), t), \qquad
        T(x) = \mathrm{clip}(x + a (2k - 1) \odot m)

    with the image :math:`x` of the target class :math:`t`, the clean surrogate :math:`s`, the bound
    :math:`\varepsilon`, the amplitude :math:`a`, the checkerboard :math:`k` and the mask :math:`m`
    of the corners. Projected gradient ascent from a random start finds :math:`x'`, and poisoned
    rows are :math:`T(x')`.

    Args:
        epsilon: Bound :math:`\varepsilon` of the adversarial change in levels of 255, 0 to 255.
        pgd_steps: Steps of projected gradient ascent, 1 or more.
        pgd_step_size: Size of a step in levels of 255, greater than 0 and at most 255.
        patch_size: Side of the patches in pixels of a 32-pixel image, 1 or more. It scales with the
            image, and is never below one pixel.
        amplitude: Amplitude :math:`a`, greater than 0 and at most 1; 1 gives black and white
            patches.
        surrogate_epochs: Epochs in which the surrogate is trained, 1 or more.
        surrogate_width: Channels of the surrogate's first stage, 1 to 4096.
        max_images: Training images that are used at most, 2 or more.
        poison_ratio: Share of the training set that is poisoned, 0 to 1.
        target_label: The attacker's class, 0 to C - 1.
        label_map: How labels change: ``all_to_one``, ``all_to_all``, ``clean_label`` or
            ``untargeted``.
        rate_of: What the ratio is a share of: ``total``, the training set, or ``target_class``.

    Shape:
        - images: ``(N, C, H, W)`` float in [0, 1].
        - :meth:`trigger`: the same shape, in [0, 1].

    Raises:
        ValueError: If an argument is out of its range, or two patches do not fit next to each
            other.

    Needs:
        Write access to images of the target class. Labels stay true, so they may be checked. The
        surrogate is trained on the training set.

    Cost:
        Before the training, a surrogate is trained and each poisoned image takes ``pgd_steps``
        passes through it. The result is kept in the store. A step costs one masked copy.

    When it fails:
        If ``epsilon`` is small, the images stay easy to recognize and the network ignores the
        patches. The target class limits the number of poisoned images, and a class without clean
        images costs clean accuracy.

    Note:
        The only label map is ``clean_label``. The surrogate is a small residual network trained
        normally; the paper also tries adversarially trained networks. The patches are mirrored, so
        that a flipped image has the same trigger.

    Example:
        >>> attack = LabelConsistent()
        >>> float(attack(torch.zeros(1, 1, 32, 32)).sum())  # 5 white pixels in each corner
        20.0

    References:
        Turner, Tsipras and Madry, "Label-consistent backdoor attacks", 2019, arXiv 1912.02771.

    See Also:
        - :class:`~fst_lightning.attacks.SIG`: true labels, without a surrogate.
        - :class:`~fst_lightning.attacks.BadNets`: one patch, with changed labels.
    """

    crafts: ClassVar[bool] = True
    label_maps: ClassVar[tuple[str, ...]] = ("clean_label",)

    stamped: Tensor
    surrogate: Surrogate

    def __init__(
        self,
        epsilon: float = 16.0,
        pgd_steps: int = 20,
        pgd_step_size: float = 2.0,
        patch_size: int = 3,
        amplitude: float = 1.0,
        surrogate_epochs: int = 8,
        surrogate_width: int = 16,
        max_images: int = 10_000,
        poison_ratio: float = 0.05,
        target_label: int = 0,
        label_map: LabelMap = "clean_label",
        rate_of: RateOf = "total",
    ) -> None:
        super().__init__(
            surrogate_epochs=surrogate_epochs,
            surrogate_width=surrogate_width,
            max_images=max_images,
            poison_ratio=poison_ratio,
            target_label=target_label,
            label_map=label_map,
            rate_of=rate_of,
        )
        check_number("epsilon", epsilon, high=255)
        check_number("pgd_step_size", pgd_step_size, low_open=True, high=255)
        check_number("amplitude", amplitude, low_open=True, high=1)
        check_counts(pgd_steps=pgd_steps, patch_size=patch_size)
        self.epsilon = epsilon
        self.pgd_steps = pgd_steps
        self.pgd_step_size = pgd_step_size
        self.patch_size = patch_size
        self.amplitude = amplitude
        self.draw(3, 32, 32)

    def prepare(self, images: Tensor, labels: Tensor, num_classes: int, seed: int) -> None:
        """Draw the patches for images of this size, and allocate the surrogate."""
        super().prepare(images, labels, num_classes, seed)
        if not self.fitted:
            self.surrogate = Surrogate(num_classes, images.shape[1], self.surrogate_width, seed)
            self.surrogate.requires_grad_(False)

    def fit(
        self, images: Tensor, labels: Tensor, num_classes: int, seed: int, device: torch.device
    ) -> None:
        """Train the surrogate."""
        surrogate = self.train_surrogate(images, labels, num_classes, seed, device)
        self.surrogate = surrogate.train(self.training)

    def craft(
        self, images: Tensor, labels: Tensor, rows: Tensor, *, cover: bool, seed: int
    ) -> Tensor:
        """Change the images so that the surrogate no longer recognizes their class."""
        self.check_fitted()
        generator = torch.Generator().manual_seed(derived_seed(seed, "label_consistent"))
        crafted = torch.empty_like(images)
        for part in torch.split(torch.arange(len(images)), _BATCH_SIZE):
            start = torch.rand(images[part].shape, generator=generator) * 2 - 1
            adversarial = self.adversarial(images[part], labels[part], start)
            crafted[part] = adversarial.to(images.device, torch.uint8)
        # Lightning warns about modules that are in evaluation mode when training starts.
        self.surrogate.train(self.training)
        return crafted

    def adversarial(self, images: Tensor, labels: Tensor, start: Tensor) -> Tensor:
        """Increase the surrogate's loss by signed gradient steps, within the bound.

        Args:
            images: ``(N, C, H, W)`` uint8.
            labels: ``(N,)`` int64.
            start: ``(N, C, H, W)`` in [-1, 1], the random start as a share of the bound.

        Returns:
            ``(N, C, H, W)`` float, whole numbers from 0 to 255.
        """
        surrogate = self.surrogate.eval()
        device = surrogate.mean.device
        clean, labels = images.to(device).float(), labels.to(device)
        lowest, highest = (clean - self.epsilon).clamp_min(0), (clean + self.epsilon).clamp_max(255)
        changed = (clean + self.epsilon * start.to(device)).clamp(lowest, highest)
        for _ in range(self.pgd_steps):
            uphill = input_gradient(surrogate, changed / 255, labels).sign()
            changed = (changed + self.pgd_step_size * uphill).clamp(lowest, highest)
        # Round towards the clean image: rounding to the nearest could leave the ball.
        return clean + (changed - clean).trunc()

    def trigger(self, images: Tensor) -> Tensor:
        """Stamp the patches on ``(N, C, H, W)`` images in [0, 1]."""
        self.check_shape(images, None, *self.stamped.shape[-2:])
        return (images + self.stamped.to(images.dtype)).clamp(0, 1)

    def draw(self, channels: int, height: int, width: int) -> None:
        """Draw the patches for images of this size."""
        size = max(1, round(self.patch_size * min(height, width) / 32))
        if 2 * size > min(height, width):
            raise ValueError(
                f"Expected two patches to fit beside each other into {height} x {width} pixels, "
                f"but one takes {size}; lower `patch_size`."
            )
        # The corners are white, so that a patch of one pixel is white too.
        white = (torch.arange(size)[:, None] + torch.arange(size) + 1).remainder(2)
        patch = self.amplitude * (2.0 * white - 1)
        stamped = torch.zeros(1, 1, height, width)
        # Mirrored into the other corners, so that a flipped image has the same trigger.
        stamped[..., :size, :size] = patch
        stamped[..., :size, -size:] = patch.flip(1)
        stamped[..., -size:, :size] = patch.flip(0)
        stamped[..., -size:, -size:] = patch.flip(0, 1)
        self.register_buffer("stamped", stamped)
