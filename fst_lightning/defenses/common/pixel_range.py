"""Converts between images in [0, 1] and the input of a network."""

from __future__ import annotations

import torch
from torch import Tensor

from fst_lightning.defenses.common.clean_data import LabeledImages
from fst_lightning.defenses.common.found_buffers import FoundBuffers


class PixelRange(FoundBuffers):
    """The values that stand for black and white in a network's input, per channel.

    Triggers are made for images in [0, 1]. If the normalization is unknown, the least and the
    largest value of the clean images count as black and white.

    Attributes:
        low: Black, ``(1, C, 1, 1)`` float32; empty before :meth:`fit`.
        high: White, of the same shape.

    Example:
        >>> images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
        >>> clean = LabeledImages(images, torch.zeros(2), mean=[0.5], std=[0.25])
        >>> pixel_range = PixelRange.of(clean)
        >>> pixel_range.to_inputs(torch.tensor([0.0, 0.5, 1.0])).flatten().tolist()
        [-2.0, 0.0, 2.0]
    """

    low: Tensor
    high: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.empty(0))
        self.register_buffer("high", torch.empty(0))

    @classmethod
    def of(cls, clean: LabeledImages) -> PixelRange:
        """The range of these images."""
        found = cls()
        found.fit(clean)
        return found

    def fit(self, clean: LabeledImages) -> None:
        """Take the range of these images: by their normalization, or else by their values."""
        if clean.mean is not None or clean.images.dtype == torch.uint8:
            shape = (1, clean.images.shape[1], 1, 1)
            black = torch.zeros(shape, device=clean.device)
            low, high = clean.normalize(black), clean.normalize(black + 1)
        else:
            images = clean.normalize(clean.images)
            low, high = images.amin((0, 2, 3), keepdim=True), images.amax((0, 2, 3), keepdim=True)
            high = torch.maximum(high, low + 1e-3)
        self.low, self.high = low.float(), high.float()

    def to_pixels(self, inputs: Tensor) -> Tensor:
        """Convert the network's input to float32 in [0, 1]; values outside are clipped.

        Args:
            inputs: ``(N, C, H, W)``.
        """
        return ((inputs.float() - self.low) / (self.high - self.low)).clamp(0, 1)

    def to_inputs(self, pixels: Tensor) -> Tensor:
        """Convert images in [0, 1] to the network's input, in float32.

        Args:
            pixels: ``(N, C, H, W)``.
        """
        return self.low + (self.high - self.low) * pixels
