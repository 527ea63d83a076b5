"""Turns stored images into network inputs, on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.attacks import Attack, check_pixels, full_precision
from fst_lightning.validate import check_choice, check_number

CropFill = Literal["zeros", "reflect"]

_ADVICE = (
    "Let the loader return images in [0, 1], or uint8, and pass `mean` and `std`: images are "
    "normalized here, after the trigger. Divide floats in 0..255 by 255."
)


class InputPipeline(nn.Module):
    """Scale to [0, 1], add the trigger, augment and normalize, always in this order.

    The trigger comes before augmentation, as if it had been in the image file. Attack and
    normalizer are submodules, so that they move to the device and are saved with the module;
    normalization stays out of the network, whose keys must not change.

    Args:
        attack: The attack with the trigger; None for none.
        mean: Mean per channel, of images in [0, 1]; None does not normalize.
        std: Per channel, greater than 0.
        crop_padding: Pixels of padding for random crops while training; 0 for no crops.
        horizontal_flip: Whether to mirror half of the training images.
        crop_fill: Content of the padding: ``zeros``, or the mirrored image (``reflect``).
        alternate_flips: Whether to mirror one half of the images in even epochs and the other half
            in odd ones, instead of a new draw in each epoch (Jordan, 2024, arXiv 2404.00498).

    Attributes:
        epoch: The epoch of training, which alternating flips depend on.

    Raises:
        ValueError: If only one of mean and std is given, a std is not positive, the padding is
            negative, its fill is unknown, or a share or strength is outside [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        attack: Attack | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        crop_padding: int = 0,
        horizontal_flip: bool = False,
        crop_fill: CropFill = "zeros",
        alternate_flips: bool = False,
    ) -> None:
        super().__init__()
        if (mean is None) != (std is None):
            raise ValueError(
                f"Expected `mean` and `std` both or neither, but got {mean} and {std}."
            )
        if std is not None and not all(value > 0 for value in std):
            raise ValueError(f"Expected `std` to be positive, but got {list(std)}.")
        check_number("crop_padding", crop_padding, whole=True)
        check_choice("crop_fill", crop_fill, CropFill)
        self.attack = attack
        self.normalizes = mean is not None
        self.crop_padding = crop_padding
        self.horizontal_flip = horizontal_flip
        self.crop_fill: CropFill = crop_fill
        self.alternate_flips = alternate_flips
        self.epoch = 0
        self._checked = False
        # Not persistent, because they are part of the data configuration and not weights.
        self.register_buffer("mean", _per_channel(mean), persistent=False)
        self.register_buffer("std", _per_channel(std), persistent=False)

    def forward(
        self, images: Tensor, triggered: Tensor | bool = False, *, augment: bool = False
    ) -> Tensor:
        """Turn stored images into network inputs.

        Args:
            images: ``(N, C, H, W)``, uint8, or float in [0, 1].
            triggered: Which rows get the trigger, ``(N,)`` bool, or one bool for all.
            augment: Whether to crop and flip at random.

        Returns:
            ``(N, C, H, W)``, normalized, in the default type; in the type of the images if they are
            float.
        """
        stamps = self.attack is not None and triggered is not False
        # Floats that are normalized already stay as they are.
        pixels = self.pixels(images) if stamps or self.normalizes else _scaled(images)
        if self.attack is not None and triggered is not False:
            with full_precision(pixels):
                stamped = self.attack(pixels)
            if isinstance(triggered, Tensor):
                # `where` on whole mini-batches: selecting rows would wait for the device.
                stamped = torch.where(triggered[:, None, None, None], stamped, pixels)
            pixels = stamped
        return self.from_pixels(pixels, augment=augment).to(_dtype(images))

    def pixels(self, images: Tensor) -> Tensor:
        """Scale stored images to [0, 1], and check the first batch of floats.

        Args:
            images: ``(N, C, H, W)``, uint8 or float in [0, 1].

        Raises:
            ValueError: If the first batch of floats is not in [0, 1], or does not have as many
                channels as ``mean``.
        """
        if not self._checked and images.dtype != torch.uint8:
            self._checked = True
            check_pixels(images, _ADVICE)
            self._check_channels(images)
        return _scaled(images)

    def check_next_batch(self) -> None:
        """Check the next batch of floats again, because it comes from another loader."""
        self._checked = False

    def denormalized(self, images: Tensor) -> Tensor:
        """Undo the normalization: network inputs to images in [0, 1]."""
        if not self.normalizes:
            return images
        self._check_channels(images)
        return images * self.std + self.mean

    def _check_channels(self, images: Tensor) -> None:
        channels = self.mean.shape[1]
        # Broadcasting would add channels to the images.
        if self.normalizes and channels not in (1, images.shape[1]):
            raise ValueError(
                f"Expected images with {channels} channels, as many as `mean` and `std` have "
                f"entries, but got {images.shape[1]}."
            )

    def from_pixels(self, pixels: Tensor, *, augment: bool = False) -> Tensor:
        """Augment and normalize images in [0, 1], after the trigger."""
        if augment:
            pixels = self._augment(pixels)
        if self.normalizes:
            pixels = (pixels - self.mean) / self.std
        return pixels

    def _augment(self, images: Tensor) -> Tensor:
        turn = self._turn(images) if self.alternate_flips else None
        if self.crop_padding:
            images = random_crop(images, self.crop_padding, self.crop_fill)
        if self.horizontal_flip:
            mirrored = torch.rand(len(images), device=images.device) < 0.5 if turn is None else turn
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        return images

    def _turn(self, images: Tensor) -> Tensor:
        # The row of an image is unknown here, but the sum of its pixels is even or odd by chance.
        sums = (images * 255).round().sum((1, 2, 3), dtype=torch.float64)
        return (sums + self.epoch) % 2 == 1


def random_crop(images: Tensor, padding: int, fill: CropFill = "zeros") -> Tensor:
    """Pad images, and crop each one at its own position.

    Args:
        images: ``(N, C, H, W)``.
        padding: Pixels on each side, 1 or more; less than the image for ``reflect``.
        fill: Content of the padding.

    Returns:
        Images of the same shape.
    """
    count, _, height, width = images.shape
    padded = functional.pad(images, [padding] * 4, "constant" if fill == "zeros" else fill)
    top, left = torch.randint(2 * padding + 1, (2, count), device=images.device)
    return cast(Tensor, _Cut.apply(padded, top, left, height, width))


class _Cut(torch.autograd.Function):
    """Crop each image at its own position.

    The gradient of a view of all windows would be as large as all of them, 81 times the images for
    a padding of 4. The gradient of a crop is a crop of the padded gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, top: Tensor, left: Tensor, height: int, width: int
    ) -> Tensor:
        ctx.save_for_backward(top, left)
        ctx.size = images.shape[2:]
        windows = images.unfold(2, height, 1).unfold(3, width, 1)
        return windows[torch.arange(len(images), device=images.device), :, top, left]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = gradients
        top, left = ctx.saved_tensors
        height, width = ctx.size
        # The distance between the first and the last window.
        rows, columns = height - gradient.shape[2], width - gradient.shape[3]
        padded = functional.pad(gradient, [columns, columns, rows, rows])
        whole: Tensor = _Cut.apply(padded, rows - top, columns - left, height, width)
        return whole, None, None, None, None


def _scaled(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images


def _dtype(images: Tensor) -> torch.dtype:
    # In bf16-true and 64-true, Lightning sets the default type to that of the weights.
    return torch.get_default_dtype() if images.dtype == torch.uint8 else images.dtype


def _per_channel(values: Sequence[float] | None) -> Tensor:
    return torch.tensor(() if values is None else tuple(values)).reshape(1, -1, 1, 1)
