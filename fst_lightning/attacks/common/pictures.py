"""Pictures of the user that become patterns, patches and reflections."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from fst_lightning.folders import entries_inside
from fst_lightning.image_files import FORMATS, is_image, open_image
from fst_lightning.printable import printable

_PIXELS_AT_A_TIME = 2**16
# Values of a plane after its rows and before its columns are resized: 40 MB.
_MOST_VALUES = 10_000_000


def check_picture(path: str | None) -> None:
    """Refuse a picture that does not exist; None is no picture.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    if path is not None and not Path(path).is_file():
        raise FileNotFoundError(
            f"Expected `attack.image` to be a picture, but there is no file {path}."
        )


def pictures_in(folder: str) -> list[Path]:
    """The pictures in a folder, by name, without its subfolders.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no picture, or a symbolic link leads out of it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(
            f"Expected `attack.folder` to be a folder of pictures, but there is none at {folder}."
        )
    pictures = [
        path
        for path in (Path(entry.path) for entry in entries_inside(root, root))
        # A broken link is listed, so that the error of reading names it.
        if is_image(path) and (path.is_file() or not path.exists())
    ]
    if not pictures:
        raise ValueError(
            f"Expected `attack.folder` to hold pictures ({', '.join(FORMATS)}), but "
            f"there is none in {folder}."
        )
    return pictures


def read_picture(path: str | Path, channels: int, height: int, width: int) -> Tensor:
    """Read and resize a picture; transparent parts show the color below them.

    Args:
        path: Path of the file.
        channels: 3 for red, green and blue, otherwise 1.
        height: Height in pixels to resize to.
        width: Width in pixels to resize to.

    Returns:
        ``(1, C, H, W)`` in [0, 1].

    Raises:
        ValueError: If the file is not a picture.
    """
    mode = _mode(channels)
    return _read(path, height, width, len(mode), lambda rows: _levels(rows, mode))


def read_patch(path: str | Path, channels: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Read and resize a picture and its opacity.

    Args:
        path: Path of the file.
        channels: 3 for red, green and blue, otherwise 1.
        height: Height in pixels to resize to.
        width: Width in pixels to resize to.

    Returns:
        Colors ``(1, C, H, W)`` and opacity ``(1, 1, H, W)``, both in [0, 1]. The opacity is 1 if
        the picture has none.

    Raises:
        ValueError: If the file is not a picture.
    """
    mode = _mode(channels)

    def weighted(rows: Image.Image) -> Tensor:
        opacity = _levels(rows, "RGBA")[:, 3:]
        # Weighted by opacity, so that the color of transparent pixels does not bleed in.
        return torch.cat([opacity, _levels(rows, mode) * opacity], dim=1)

    planes = _read(path, height, width, 1 + len(mode), weighted)
    mask, colors = planes[:, :1], planes[:, 1:]
    return (colors / mask.clamp_min(1e-6)).clamp(0, 1), mask


def _mode(channels: int) -> str:
    return "RGB" if channels == 3 else "L"


def _read(
    path: str | Path,
    height: int,
    width: int,
    num_planes: int,
    planes_of: Callable[[Image.Image], Tensor],
) -> Tensor:
    """Decode a picture and resize its planes, a few rows at a time.

    Args:
        path: Path of the file.
        height: Height in pixels to resize to.
        width: Width in pixels to resize to.
        num_planes: Number of planes that `planes_of` returns.
        planes_of: Turns some rows of the picture into ``(1, num_planes, rows, W)`` in [0, 1].
    """
    try:
        with open_image(Path(path)) as picture:
            if max(picture.size) * width > _MOST_VALUES:
                wide, high = picture.size
                raise ValueError(f"it is {wide:,}x{high:,} pixels: a side is too long")
            picture.load()
            wide, high = picture.size  # A TIFF file may be rotated when it is loaded.
            step = max(1, _PIXELS_AT_A_TIME // wide)
            narrow = torch.empty(1, num_planes, high, width)
            # Rows are resized first and columns then, so that a few rows at a time suffice.
            for top in range(0, high, step):
                rows = planes_of(picture.crop((0, top, wide, min(top + step, high))))
                narrow[:, :, top : top + step] = _resized(rows, (rows.shape[2], width))
    # Decoders report damage in many ways: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        raise ValueError(
            f"Expected {printable(path)} to be a picture, but it can't be read: "
            f"{printable(error) or type(error).__name__}. Choose another picture, or save it again."
        ) from error
    return _resized(narrow, (height, width))


def _levels(rows: Image.Image, mode: str) -> Tensor:
    """Rows of a picture in one of Pillow's modes: ``(1, C, H, W)`` in [0, 1]."""
    if rows.mode.startswith("I"):
        # 16 bits, which Pillow would clip to 8 bits instead of scaling.
        levels = np.asarray(rows).astype(np.int64).clip(0, 65535) // 257
        rows = Image.fromarray(levels.astype(np.uint8))
    planes = np.array(rows.convert(mode))
    return torch.from_numpy(planes.reshape(*planes.shape[:2], -1)).permute(2, 0, 1)[None] / 255


def _resized(planes: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(planes, size=size, mode="bilinear", antialias=True)
