"""Warping-based poisoned networks (WaNet): a smooth, barely visible warp.

Example:
    ``python train.py attack=wanet attack.strength=0.75 attack.poison_ratio=0.1``
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fst_lightning.attacks.common.attack import Attack, LabelMap, RateOf
from fst_lightning.validate import check_number


class WaNet(Attack):
    r"""Warp the image by a fixed smooth field, and relabel the image.

    *How it works.* Instead of adding something to an image, the attacker bends it slightly, like a
    print on a sheet of rubber. The warp is the same for all images and too small to notice. A
    network might learn that any warp means the target class. Therefore a second group of images,
    the cover rows, is warped with additional random noise and keeps its true labels, so that the
    network learns this exact warp.

    .. math:: T(x) = x \circ G, \qquad G = \mathrm{clip}(I + s\,\psi / H, -1, 1)

    with the image :math:`x`, the identity grid :math:`I`, the strength :math:`s`, the image height
    :math:`H` and the field :math:`\psi`. The field is drawn from U(-1, 1) on a small grid of
    control points, divided by its mean absolute value, and enlarged to the image by bicubic
    interpolation. Coordinates run from -1 to 1 over the image, so that the mean shift is about
    :math:`s / 2` pixels. Cover rows use :math:`G + u / H` with :math:`u \sim U(-1, 1)` for each
    pixel of each image.

    Args:
        grid_size: Control points along each side of the field, 2 or more.
        strength: Strength :math:`s`, 0 or more; 0 moves nothing.
        pattern_seed: Seed of the field; independent of the seed of the run.
        cover_ratio: Share of the training set that is warped with noise, 0 to 1; None for twice the
            poison ratio, as published, or fewer if fewer rows are left.
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
        Write access to training images and labels, for poisoned and cover rows. The attacker needs
        neither the network nor the training code. By default there are twice as many cover rows as
        poisoned ones.

    Cost:
        One resampling of the poisoned and cover rows per mini-batch; nothing before the training.

    When it fails:
        At a low poison ratio or in a short training the backdoor often does not form: check the
        attack success rate before you credit a defense. An image without edges shows no warp. Plain
        fine-tuning often removes this backdoor.

    Note:
        The published code poisons other rows in each epoch; here the rows are fixed by the seed,
        and the noise of cover rows is drawn anew in each step.

    Example:
        >>> image = torch.rand(1, 3, 32, 32)
        >>> bool((WaNet(strength=0.0).trigger(image) - image).abs().max() < 1e-5)
        True

    References:
        Nguyen and Tran, "WaNet: Imperceptible warping-based backdoor attack", ICLR 2021, arXiv
        2102.10369.

    See Also:
        - :class:`~fst_lightning.attacks.InputAware`: the same authors; a different trigger for each
          image.
        - :class:`~fst_lightning.attacks.Bpp`: cover rows with a quantization trigger.
    """

    grid: Tensor

    def __init__(
        self,
        grid_size: int = 4,
        strength: float = 0.5,
        pattern_seed: int = 0,
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
        check_number("grid_size", grid_size, low=2, whole=True)
        check_number("strength", strength)
        if cover_ratio is None:
            cover_ratio = min(2 * poison_ratio, 1 - poison_ratio)
        check_number("cover_ratio", cover_ratio, high=1)
        self.cover_ratio = cover_ratio
        self.grid_size = grid_size
        self.strength = strength
        self.pattern_seed = pattern_seed
        self.draw(3, 32, 32)

    def trigger(self, images: Tensor) -> Tensor:
        """Warp ``(N, C, H, W)`` images in [0, 1]."""
        return self._sample(images, self.grid.expand(len(images), -1, -1, -1))

    def cover(self, images: Tensor) -> Tensor:
        """Warp each image with the field and its own noise, and round like poisoned rows."""
        height, width = images.shape[2:]
        # One unit is a pixel along x and y, as in the field.
        step = self.grid.new_tensor([1 / width, 1 / height])
        noise = torch.rand(len(images), height, width, 2, device=images.device) * 2 - 1
        warped = self._sample(images, (self.grid + noise * step).clamp(-1, 1))
        return torch.round(warped.clamp(0, 1) * 255) / 255

    def _sample(self, images: Tensor, grid: Tensor) -> Tensor:
        self.check_shape(images, None, *self.grid.shape[1:3])
        return functional.grid_sample(images, grid.to(images.dtype), align_corners=True)

    def draw(self, channels: int, height: int, width: int) -> None:
        """Enlarge the field to images of this size."""
        generator = torch.Generator().manual_seed(self.pattern_seed)
        control = torch.rand(1, 2, self.grid_size, self.grid_size, generator=generator) * 2 - 1
        field = functional.interpolate(
            control / control.abs().mean(), (height, width), mode="bicubic", align_corners=True
        )
        identity = torch.eye(2, 3)[None]
        places = functional.affine_grid(identity, [1, 1, height, width], align_corners=True)
        move = self.strength * field.permute(0, 2, 3, 1) / torch.tensor([width, height])
        self.register_buffer("grid", (places + move).clamp(-1, 1))
