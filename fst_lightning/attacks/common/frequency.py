"""Triggers in the frequency domain: cosines added to the colour planes of an image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fst_lightning.attacks.common.attack import Attack, LabelMap, RateOf

_SIDE = 32
"""What positions are counted in, where a window is as large as the image."""


class FrequencyAttack(Attack):
    r"""Raise a few coefficients of U and V in every window: :math:`D^{-1}(D(x) + M e)`.

    :math:`D` is the orthonormal discrete cosine transform of the windows of the planes U and V.
    Both it and the colour conversion are linear, so that all of this adds one and the same pattern
    to every image: :math:`T(x) = \mathrm{clip}(x + p)`. The pattern is computed once, in float64.

    In every whole window it changes U and V by :math:`M \sqrt{k}` in the L2 norm, for k different
    positions (Parseval). Windows that reach over the border are cut off there. Grey images have no
    colour planes and get it in their only one.

    Args:
        magnitude: :math:`M` in levels of 255, above 0.
        positions: of coefficients in a window, row, column, row, column, 0 to ``window`` - 1.
        window: height and width of the windows in pixels, 1 or more; None for one window, as large
            as the image, with positions counted in a window of 32. In smaller or larger windows
            than positions are counted in, they are scaled along, which keeps the period in pixels.
        poison_ratio: share of the training set, 0 to 1.
        target_label: the attacker's class.
        label_map: any.
        rate_of: ``total`` or ``target_class``.
        save_examples: whether a run writes a picture of triggered images.

    Raises:
        ValueError: for a magnitude, window or position outside its range.
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
        save_examples: bool = True,
    ) -> None:
        super().__init__(
            poison_ratio=poison_ratio,
            target_label=target_label,
            label_map=label_map,
            rate_of=rate_of,
            save_examples=save_examples,
        )
        if not (math.isfinite(magnitude) and magnitude > 0):
            raise ValueError(f"Expected `magnitude` to be greater than 0, but got {magnitude}.")
        if window is not None and window < 1:
            raise ValueError(f"Expected `window` to be 1 or more, but got {window}.")
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


def dct_matrix(size: int) -> Tensor:
    r"""The orthonormal DCT-II of n values, as a matrix.

    Row i is :math:`\sqrt{2 / n} \cos(\pi i (2 j + 1) / 2 n)` for columns j, row 0 divided by
    :math:`\sqrt 2`.

    Args:
        size: :math:`n`, 1 or more.

    Returns:
        ``(n, n)`` float64.

    Example:
        >>> matrix = dct_matrix(8)
        >>> torch.allclose(matrix @ matrix.T, torch.eye(8, dtype=torch.float64))
        True
    """
    places = torch.arange(size, dtype=torch.float64) + 0.5
    order = torch.arange(size, dtype=torch.float64)[:, None]
    matrix = math.sqrt(2 / size) * torch.cos(math.pi / size * order * places)
    matrix[0] /= math.sqrt(2)
    return matrix


def dct(planes: Tensor) -> Tensor:
    r"""Transform ``(..., H, W)`` planes to their cosine coefficients: :math:`C_H x C_W^T`.

    Example:
        >>> float(dct(torch.ones(4, 4))[0, 0])  # the norm of the plane, all in the constant
        4.0
    """
    rows, columns = _matrices(planes)
    return rows @ planes @ columns.T


def inverse_dct(spectra: Tensor) -> Tensor:
    r"""Transform ``(..., H, W)`` cosine coefficients back to planes: :math:`C_H^T s C_W`.

    Example:
        >>> planes = torch.rand(2, 3, 12, 8)
        >>> torch.allclose(inverse_dct(dct(planes)), planes, atol=1e-4)
        True
    """
    rows, columns = _matrices(spectra)
    return rows.T @ spectra @ columns


def rgb_to_yuv(images: Tensor) -> Tensor:
    r"""Split ``(N, 3, H, W)`` images into luminance and colour differences (ITU-R BT.601).

    :math:`Y = 0.299 R + 0.587 G + 0.114 B`, :math:`U = 0.492 (B - Y)`, :math:`V = 0.877 (R - Y)`.

    Example:
        >>> grey = torch.full((1, 3, 1, 1), 0.5)
        >>> [round(abs(float(v)), 3) for v in rgb_to_yuv(grey).flatten()]
        [0.5, 0.0, 0.0]
    """
    return _mix(_YUV, images)


def yuv_to_rgb(images: Tensor) -> Tensor:
    """Bring ``(N, 3, H, W)`` planes Y, U and V back to red, green and blue.

    Example:
        >>> images = torch.rand(2, 3, 4, 4)
        >>> torch.allclose(yuv_to_rgb(rgb_to_yuv(images)), images, atol=1e-6)
        True
    """
    return _mix(torch.linalg.inv(_YUV), images)


_YUV = torch.tensor(
    [
        [0.299, 0.587, 0.114],
        [-0.492 * 0.299, -0.492 * 0.587, 0.492 * (1 - 0.114)],
        [0.877 * (1 - 0.299), -0.877 * 0.587, -0.877 * 0.114],
    ],
    dtype=torch.float64,
)


def _mix(matrix: Tensor, images: Tensor) -> Tensor:
    return torch.einsum("ij,njhw->nihw", matrix.to(images.device, images.dtype), images)


def _matrices(planes: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = (dct_matrix(size).to(planes.device, planes.dtype) for size in planes.shape[-2:])
    return rows, columns


def _pairs(positions: Sequence[int], side: int) -> list[tuple[int, int]]:
    whole = all(isinstance(value, int) and 0 <= value < side for value in positions)
    if not (positions and len(positions) % 2 == 0 and whole):
        raise ValueError(
            f"Expected `positions` to be rows and columns in turns, each in 0..{side - 1}, "
            f"but got {list(positions)}."
        )
    return list(zip(positions[::2], positions[1::2], strict=True))
