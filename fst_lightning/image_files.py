"""Which image files are read, and how large they may be: nobody vouches for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"}
)
"""Endings, in lower case, of the files that are taken for images."""

MAX_PIXELS = 100_000_000
"""Most pixels that a file may declare; a small file can declare billions."""

MAX_BYTES = 4 * MAX_PIXELS
"""Longest file: Pillow reads some formats whole, and a sparse file of any length takes no room."""

# By content, whatever the ending says. Without the list Pillow would start Ghostscript for an
# EPS file that is named like a photograph.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF", "GIF")


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Open an image whose size was looked at; its pixels are not decoded yet.

    Args:
        path: the file; its content tells the format.

    Raises:
        ValueError: if it is longer than `MAX_BYTES` or declares more than `MAX_PIXELS`.
        Exception: of any type where Pillow can't read it.
    """
    length = path.stat().st_size
    if length > MAX_BYTES:
        raise ValueError(f"it has {length:,} bytes, and the limit is {MAX_BYTES:,}")
    with Image.open(path, formats=_FORMATS) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(
                f"it declares {width}x{height} pixels, and the limit is {MAX_PIXELS:,}"
            )
        yield image
