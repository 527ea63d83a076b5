"""Read image files, which may be damaged or hostile, into one tensor."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"}
)
"""Endings, in lower case, of the files that are taken for images."""

MAX_PIXELS = 100_000_000
"""Most pixels that a file may declare; a small file can declare billions."""

# By content, whatever the ending says. Without the list Pillow would start Ghostscript for an
# EPS file that is named like a photograph.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF", "GIF")
_GREY_16_BIT = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})
_CHUNK = 64
# More would wait for the interpreter lock, and each may hold an image of `MAX_PIXELS`.
_MAX_THREADS = 16
_REPORT_SECONDS = 5.0


def decode_images(
    paths: Sequence[Path], image_size: int, into: Tensor | None = None, *, report: bool = False
) -> Tensor:
    """Decode files in parallel threads.

    The centre square of each image is resized, bilinear with antialiasing (that is: the shorter
    side is resized and the longer one cropped). Everything becomes RGB: an alpha channel is
    dropped, 16-bit grey is scaled to 8 bits. Of an animation the first frame counts, and the
    orientation tag of cameras is ignored, as torchvision does.

    Args:
        paths: the files.
        image_size: height and width of the result in pixels.
        into: what to write the result to, of its shape; None makes a tensor in memory.
        report: say every few seconds how far it is.

    Returns:
        uint8 of shape (N, 3, image_size, image_size), in the order of the paths.

    Raises:
        ValueError: naming the first file that cannot be read, and why.
    """
    shape = (len(paths), 3, image_size, image_size)
    images = torch.empty(shape, dtype=torch.uint8) if into is None else into
    pixels = images.numpy()

    def decode_chunk(start: int) -> None:
        for row in range(start, min(start + _CHUNK, len(paths))):
            pixels[row] = _decode(paths[row], image_size).transpose(2, 0, 1)

    with ThreadPoolExecutor(min(os.cpu_count() or 1, _MAX_THREADS)) as pool:
        # Iterating raises the first error in order and cancels the chunks that have not started.
        starts = range(0, len(paths), _CHUNK)
        shown = time.monotonic()
        for start, _ in zip(starts, pool.map(decode_chunk, starts), strict=True):
            if report and time.monotonic() - shown > _REPORT_SECONDS:
                shown = time.monotonic()
                print(f"decode: {start:,} of {len(paths):,} images, once", flush=True)
    return images


def _decode(path: Path, image_size: int) -> npt.NDArray[np.uint8]:
    try:
        with Image.open(path, formats=_FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ValueError(
                    f"it declares {width}x{height} pixels, and the limit is {MAX_PIXELS:,}"
                )
            image.load()
            # Again, because loading turns a TIFF the way its orientation tag says.
            width, height = image.size
            side = min(width, height)
            left, top = (width - side) / 2, (height - side) / 2
            square = _to_rgb(image).resize(
                (image_size, image_size),
                Image.Resampling.BILINEAR,
                box=(left, top, left + side, top + side),
            )
            return np.asarray(square)
    # Decoders report damage in many ways: OSError, SyntaxError, struct.error, zlib.error, ...
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ValueError(
            f"Could not read the image {path}: {reason}. Replace or delete the file."
        ) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode in _GREY_16_BIT:
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(
                f"its grey values go from {values.min()} to {values.max()}, "
                f"and 0 to 65535 can be read"
            )
        # 65535 / 255 = 257: white stays white.
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("it holds floating-point numbers; save it with 8 or 16 bits")
    if image.mode == "P" and "transparency" in image.info:
        # Pillow warns where this is converted to RGB at once.
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")
