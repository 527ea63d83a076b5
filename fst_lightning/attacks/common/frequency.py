"""Triggers in the frequency domain: cosines added to the color planes of an image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fst_lightning.attacks.common.attack import Attack, LabelMap, RateOf
from fst_lightning.validate import check_number

_SIDE = 32
"""The side that positions refer to if a window is as large as the image."""


class FrequencyAttack(Attack):
    r"""Raise some coefficients of U and V in each window: :math:`D^{-1}(D(x) + M e)`.

    :math:`D` is the orthonormal discrete cosine transform of windows of the planes U and V. The
    transform and the color conversion are linear, so that the attack adds the same pattern to each
    image: :math:`T(x) = \mathrm{clip}(x + p)`. The pattern is computed once, in float64.

    In each whole window, it changes U and V by :math:`M \sqrt{k}` in the L2 norm, for k different
    positions (Parseval's theorem). Windows that extend over the border are cut off. Gray images
    have no color planes and get the pattern in their only one.

    Args:
        magnitude: Magnitude :math:`M` in levels of 255, greater than 0.
        positions: Coefficients in a window as row, column, row, column, 0 to ``window`` - 1.
        window: Height and width of the windows in pixels, 1 or more. None uses one window as large
            as the image, with positions counted in a window of 32. If a window has another size
            than the one positions are counted in, they are scaled, which keeps their periods in
            pixels.
        poison_ratio: Share of the training set that is poisoned, 0 to 1.
        target_label: The attacker's class, 0 to C - 1.
        label_map: How labels change: ``all_to_one``, ``all_to_all``, ``clean_label`` or
            ``untargeted``.
        rate_of: What the ratio is a share of: ``total``, the training set, or ``target_class``.

    Raises:
        ValueError: If a magnitude, a window or a position is out of its range.
    """

    pattern: Tensor

    def __init__(
        self,
        magnitude: float,
        positions: Sequence[int],
        window: int | None,
        poison_ratio: float = 0.05,
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
        check_number("magnitude", magnitude, low_open=True)
        if window is not None:
            check_number("window", window, low=1, whole=True)
        self.magnitude = magnitude
        self.window = window
        self.positions = _pairs(positions, window or _SIDE)
        self.draw(3, 32, 32)

    def trigger(self, images: Tensor) -> Tensor:
        """Add the pattern to ``(N, C, H, W)`` images in [0, 1]."""
        self.check_shape(images, *self.pattern.shape[1:])
        return (images + self.pattern.to(images.dtype)).clamp(0, 1)

    def draw(self, channels: int, height: int, width: int) -> None:
        """Compute the pattern for images of this shape."""
        if channels not in (1, 3):
            raise ValueError(f"Expected images of 1 or 3 channels, but got {channels}.")
        high, wide = (min(self.window or side, side) for side in (height, width))
        spectrum = torch.zeros(high, wide, dtype=torch.float64)
        side = self.window or _SIDE
        for row, column in self.positions:
            spectrum[row * high // side, column * wide // side] += self.magnitude / 255
        tiles = math.ceil(height / high), math.ceil(width / wide)
        plane = inverse_dct(spectrum).tile(tiles)[:height, :width]
        planes = plane[None, None]
        if channels == 3:
            planes = yuv_to_rgb(torch.stack([torch.zeros_like(plane), plane, plane])[None])
        self.register_buffer("pattern", planes.float())


def cosines(length: int, count: int) -> Tensor:
    r"""The first rows of the orthonormal DCT-II.

    Row i is :math:`\sqrt{2 / n} \cos(\pi i (2 j + 1) / 2 n)` for columns j; row 0 is divided by
    :math:`\sqrt 2`.

    Args:
        length: Number of columns :math:`n`, 1 or more.
        count: Number of rows, 1 to n.

    Returns:
        ``(count, length)`` float64.

    Example:
        >>> rows = cosines(8, 3)
        >>> torch.allclose(rows @ rows.T, torch.eye(3, dtype=torch.float64))
        True
    """
    places = torch.arange(length, dtype=torch.float64) + 0.5
    order = torch.arange(count, dtype=torch.float64)[:, None]
    rows = math.sqrt(2 / length) * torch.cos(math.pi / length * order * places)
    rows[0] /= math.sqrt(2)
    return rows


def inverse_dct(spectra: Tensor) -> Tensor:
    r"""Transform ``(..., H, W)`` cosine coefficients to planes: :math:`C_H^T s C_W`.

    Example:
        >>> constant = torch.zeros(4, 4)
        >>> constant[0, 0] = 4.0
        >>> inverse_dct(constant).allclose(torch.ones(4, 4))
        True
    """
    rows, columns = (cosines(size, size).to(spectra) for size in spectra.shape[-2:])
    return rows.T @ spectra @ columns


def yuv_to_rgb(images: Tensor) -> Tensor:
    """Convert ``(N, 3, H, W)`` planes Y, U and V to red, green and blue (ITU-R BT.601).

    :math:`Y = 0.299 R + 0.587 G + 0.114 B`, :math:`U = 0.492 (B - Y)`, :math:`V = 0.877 (R - Y)`.

    Example:
        >>> gray = torch.tensor([0.5, 0.0, 0.0]).reshape(1, 3, 1, 1)
        >>> yuv_to_rgb(gray).flatten().tolist()
        [0.5, 0.5, 0.5]
    """
    matrix = torch.linalg.inv(_YUV).to(images.device, images.dtype)
    return torch.einsum("ij,njhw->nihw", matrix, images)


_YUV = torch.tensor(
    [
        [0.299, 0.587, 0.114],
        [-0.492 * 0.299, -0.492 * 0.587, 0.492 * (1 - 0.114)],
        [0.877 * (1 - 0.299), -0.877 * 0.587, -0.877 * 0.114],
    ],
    dtype=torch.float64,
)


def _pairs(positions: Sequence[int], side: int) -> list[tuple[int, int]]:
    whole = all(isinstance(value, int) and 0 <= value < side for value in positions)
    if not (positions and len(positions) % 2 == 0 and whole):
        raise ValueError(
            f"Expected `positions` to be rows and columns in turns, each in 0..{side - 1}, "
            f"but got {list(positions)}."
        )
    return list(zip(positions[::2], positions[1::2], strict=True))
