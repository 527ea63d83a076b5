"""WaNet: a smooth, barely visible warp of the whole image.

Nguyen and Tran, "WaNet: Imperceptible warping-based backdoor attack", ICLR 2021, arXiv 2102.10369.

Example:
    ``python train.py attack=wanet attack.strength=0.75 attack.poison_ratio=0.1``
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fst_lightning.attacks.common.attack import Attack, LabelMap, RateOf, check_ratio


class WaNet(Attack):
    r"""Sample the image at moved places.

    .. math:: T(x) = x \circ G, \qquad G = \mathrm{clip}(I + s\,\psi / H, -1, 1)

    The field :math:`\psi` is drawn on a small grid of control points, U(-1, 1) divided by its mean
    absolute value, and enlarged to the image (bicubic). Places are counted from -1 to 1 over the
    image, so that the mean move is about s/2 pixels. Cover rows are warped by the same field with
    noise of its own on every pixel of every image, :math:`G + u / H`, :math:`u \sim U(-1, 1)`, and
    keep their true label: what is learned is this field, and not warps in general.

    Args:
        grid_size: control points along each side of the field, 2 or more.
        strength: :math:`s`, 0 or more; 0 moves nothing.
        pattern_seed: of the field; the same field for every seed of a run.
        cover_ratio: share of the training set that is warped with noise, 0 to 1; None for twice the
            poison ratio, as published (fewer where fewer rows are left).
        poison_ratio: share of the training set, 0 to 1.
        target_label: the attacker's class.
        label_map: how labels change.
        rate_of: what the ratios are a share of, ``total`` or ``target_class``.
        save_examples: whether a run writes a picture of triggered images.

    Raises:
        ValueError: for a grid of fewer than 2 points, a negative strength or a ratio outside
            [0, 1].

    Example:
        >>> image = torch.rand(1, 3, 32, 32)
        >>> bool((WaNet(strength=0.0).trigger(image) - image).abs().max() < 1e-5)
        True
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
        save_examples: bool = True,
    ) -> None:
        super().__init__(
            poison_ratio=poison_ratio,
            target_label=target_label,
            label_map=label_map,
            rate_of=rate_of,
            save_examples=save_examples,
        )
        if not isinstance(grid_size, int) or isinstance(grid_size, bool) or grid_size < 2:
            raise ValueError(
                f"Expected `grid_size` to be a whole number of 2 or more, but got {grid_size!r}."
            )
        if not 0 <= strength < float("inf"):
            raise ValueError(f"Expected `strength` to be 0 or more, but got {strength}.")
        if cover_ratio is None:
            cover_ratio = min(2 * poison_ratio, 1 - poison_ratio)
        check_ratio("cover_ratio", cover_ratio)
        self.cover_ratio = cover_ratio
        self.grid_size = grid_size
        self.strength = strength
        self.pattern_seed = pattern_seed
        self.draw(3, 32, 32)

    def trigger(self, images: Tensor) -> Tensor:
        """Warp ``(N, C, H, W)`` images in [0, 1]."""
        return self._sample(images, self.grid.expand(len(images), -1, -1, -1))

    def cover(self, images: Tensor) -> Tensor:
        """Warp every image with the field and noise of its own, rounded like poisoned rows."""
        height, width = images.shape[2:]
        # In pixels of the image along x and y, as the field is.
        step = self.grid.new_tensor([1 / width, 1 / height])
        noise = torch.rand(len(images), height, width, 2, device=images.device) * 2 - 1
        warped = self._sample(images, (self.grid + noise * step).clamp(-1, 1))
        return torch.round(warped.clamp(0, 1) * 255) / 255

    def _sample(self, images: Tensor, grid: Tensor) -> Tensor:
        if images.shape[2:] != self.grid.shape[1:3]:
            raise ValueError(
                f"Expected images of {tuple(self.grid.shape[1:3])} pixels, which the field was "
                f"drawn for, but got {tuple(images.shape[2:])}; call `prepare` with such images."
            )
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
