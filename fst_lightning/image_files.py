"""Which image files are read, and how large they may be: nobody vouches for them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pbm", ".pnm"),
    }
)
"""Suffixes, in lower case, of the files that are taken for images without a look inside."""

MAX_PIXELS = 100_000_000
"""Most pixels that a file may declare; a small file can declare billions."""

MAX_BYTES = 4 * MAX_PIXELS
"""Longest file: Pillow reads some formats whole, and a sparse file of any length takes no room."""

# Pillow tells the format by the content, whatever the suffix says. Without the list it would start
# Ghostscript for an EPS file that is named like a photograph.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF", "GIF")
"""Formats that are read, by Pillow's names."""


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
    with Image.open(path, formats=FORMATS) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(
                f"it declares {width}x{height} pixels, and the limit is {MAX_PIXELS:,}"
            )
        yield image


def is_image(path: Path) -> bool:
    """Whether a file is taken for an image: by its suffix, or if that is unusual by its content.

    A file with a usual suffix counts without being opened, so that reading it reports the damage
    if it is no image. Of a file with another suffix, or none, only the header is read.

    Args:
        path: the file.

    Example:
        >>> is_image(Path("photo.JPG")), is_image(Path("missing.txt"))
        (True, False)
    """
    if path.suffix.lower() in SUFFIXES:
        return True
    # A pipe would block.
    if not path.is_file():
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open_image(path):
                return True
    # Decoders report a foreign header in many ways: OSError, SyntaxError, struct.error, ...
    except Exception:
        return False
