"""Pictures of the user that become patterns, patches and reflections."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from fst_lightning.folders import entries_inside
from fst_lightning.image_files import FORMATS, is_image, open_image


def check_picture(path: str | None) -> None:
    """Refuse a picture that is not there; None is no picture.

    Raises:
        FileNotFoundError: where there is no such file.
    """
    if path is not None and not Path(path).is_file():
        raise FileNotFoundError(
            f"Expected `attack.image` to be a picture, but there is no file {path}."
        )


def pictures_in(folder: str) -> list[Path]:
    """The pictures in a folder, by name; folders in it are left out.

    Raises:
        FileNotFoundError: where there is no such folder.
        ValueError: where there is no picture in it, or a symbolic link leads out of it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(
            f"Expected `attack.folder` to be a folder of pictures, but there is none at {folder}."
        )
    found = [Path(entry.path) for entry in entries_inside(root, root) if entry.is_file()]
    pictures = [path for path in found if is_image(path)]
    if not pictures:
        raise ValueError(
            f"Expected `attack.folder` to hold pictures ({', '.join(FORMATS)}), but "
            f"there is none in {folder}."
        )
    return pictures


def read_picture(path: str | Path, channels: int, height: int, width: int) -> Tensor:
    """Read a picture, resized; what is transparent shows the colour that lies under it.

    Args:
        path: of the file.
        channels: 3 for red, green and blue, else 1.
        height: in pixels, to resize to.
        width: in pixels, to resize to.

    Returns:
        ``(1, C, H, W)`` in [0, 1].

    Raises:
        ValueError: for a file that is no picture.
    """
    (colours,) = _read(path, _mode(channels))
    return _resized(colours, height, width)


def read_patch(path: str | Path, channels: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Read a picture and how opaque it is, resized.

    Args:
        path: of the file.
        channels: 3 for red, green and blue, else 1.
        height: in pixels, to resize to.
        width: in pixels, to resize to.

    Returns:
        Colours ``(1, C, H, W)`` and opacity ``(1, 1, H, W)``, both in [0, 1]; the opacity is 1
        where the picture has none.

    Raises:
        ValueError: for a file that is no picture.
    """
    colours, with_opacity = _read(path, _mode(channels), "RGBA")
    opacity = with_opacity[:, 3:]
    mask = _resized(opacity, height, width)
    # Weighted by opacity, so that the colour under what is transparent does not bleed in.
    weighted = _resized(colours * opacity, height, width)
    return (weighted / mask.clamp_min(1e-6)).clamp(0, 1), mask


def _mode(channels: int) -> str:
    return "RGB" if channels == 3 else "L"


def _read(path: str | Path, *modes: str) -> list[Tensor]:
    """The picture in these modes of Pillow: ``(1, C, H, W)`` in [0, 1]."""
    try:
        with open_image(Path(path)) as file:
            picture: Image.Image = file
            if file.mode.startswith("I"):
                # 16 bits, which Pillow would clip to 8 instead of scaling them.
                levels = np.asarray(file).astype(np.int64).clip(0, 65535) // 257
                picture = Image.fromarray(levels.astype(np.uint8))
            pixels = [np.array(picture.convert(mode)) for mode in modes]
    # Decoders report damage in many ways: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        raise ValueError(
            f"Expected {path} to be a picture, but it can't be read: {error}"
        ) from error
    return [
        torch.from_numpy(planes.reshape(*planes.shape[:2], -1)).permute(2, 0, 1)[None] / 255
        for planes in pixels
    ]


def _resized(planes: Tensor, height: int, width: int) -> Tensor:
    return functional.interpolate(planes, size=(height, width), mode="bilinear", antialias=True)
