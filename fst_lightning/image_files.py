"""Which image files are read, and how large they may be: nobody vouches for them."""

from __future__ import annotations

import stat
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from fst_lightning.regular_files import NotRegularError, length, name_of_open, open_regular

SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pbm", ".pnm"),
    }
)
"""Suffixes, in lower case, of the files that are taken for images without a look inside."""

MAX_PIXELS = 100_000_000
"""Most pixels that a file may declare; a small file can declare billions."""

MAX_MEMORY = 500_000_000
"""Most bytes that decoding a file may take, for its decoder and in its mode."""

MAX_BYTES = 150_000_000
"""Longest file: some formats are read whole."""

_READ_WHOLE = 3  # WebP is copied twice

# Bytes per pixel of Pillow's image and of its conversion to RGB or gray levels, rounded up.
_BYTES_OF_MODE = {
    **{"1": 2, "L": 2, "P": 9, "RGB": 5, "LA": 5, "I;16": 7, "I;16B": 7, "I;16L": 7},
    **dict.fromkeys(("RGBA", "CMYK", "YCbCr", "LAB"), 8),
}
_BYTES_OF_OTHER_MODES = 12
# A JPEG that is sent in several scans, and any WebP, is decoded as a whole beside the image.
_BYTES_OF_JPEG = {"L": 3, "RGB": 10}
_BYTES_OF_WEBP = 17
_BYTES_OF_TIFF = 4
_TIFF_TILE = (322, 323)
_MOST_TAGS = 65_535
_BYTES_OF_TYPE = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}

# Pillow tells the format by the content, whatever the suffix says. Without the list it would start
# Ghostscript for an EPS file that is named like a photograph.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF", "GIF")
"""Formats that are read, by Pillow's names."""


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Open an image whose size was looked at; its pixels are not decoded yet.

    Args:
        path: The file; its content tells the format.

    Raises:
        ValueError: If it is longer than `MAX_BYTES`, declares more than `MAX_PIXELS`, or would take
            more than `MAX_MEMORY` to decode.
        Exception: If of any type where Pillow can't read it.
    """
    try:
        file = open_regular(path)
    except NotRegularError:
        raise ValueError("it is no regular file") from None
    with file:
        _check_length(length(file))
        _check_tags(file)
        file.seek(0)
        with Image.open(name_of_open(file), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ValueError(
                    f"it declares {width}x{height} pixels, and the limit is {MAX_PIXELS:,}"
                )
            needed = decoding_memory(image)
            if needed > MAX_MEMORY:
                raise ValueError(
                    f"its {width}x{height} pixels ({image.format}, {image.mode}) take "
                    f"{needed / 1e6:,.0f} MB to decode, and the limit is {MAX_MEMORY / 1e6:,.0f}"
                )
            yield image


def opening_memory(path: Path) -> int:
    """Return how many bytes opening a file takes at most, its pixels not decoded.

    Args:
        path: The file.

    Raises:
        ValueError: If it is no regular file, or longer than `MAX_BYTES`.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no regular file")
    _check_length(status.st_size)
    return _READ_WHOLE * status.st_size


def _check_length(size: int) -> None:
    if size > MAX_BYTES:
        raise ValueError(f"it has {size:,} bytes, and the limit is {MAX_BYTES:,}")


def _check_tags(file: BinaryIO) -> None:
    """Refuse a TIFF whose tags overlap: before 13, Pillow copies the data of each when it opens it.

    Raises:
        ValueError: If the tags announce more bytes than the file has.
    """
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 16:
        return
    (version,) = struct.unpack_from(f"{order}H", head, 2)
    if version == 43:  # BigTIFF
        start, of_number, entry = "8xQ", "Q", "HHQ8x"
    elif version == 42:
        start, of_number, entry = "4xL4x4x", "H", "HHL4x"
    else:
        return
    file.seek(struct.unpack(order + start, head)[0])
    number_size = struct.calcsize(order + of_number)
    found = file.read(number_size)
    if len(found) < number_size:
        return
    (number,) = struct.unpack(order + of_number, found)
    each = struct.calcsize(order + entry)
    listed = file.read(min(number, _MOST_TAGS) * each)
    listed = listed[: len(listed) // each * each]
    announced = sum(
        count * _BYTES_OF_TYPE.get(kind, 1)
        for _, kind, count in struct.iter_unpack(order + entry, listed)
    )
    size = length(file)
    if number > _MOST_TAGS or announced > size:
        raise ValueError(
            f"its {number:,} tags announce {announced:,} bytes, and the file has {size:,}"
        )


def decoding_memory(image: Image.Image) -> int:
    """Return how many bytes decoding an opened image takes at most, the file itself not counted.

    The figures per pixel were measured; `tests/test_image_files.py` measures them again.

    Args:
        image: Opened and not decoded.
    """
    of_mode = _BYTES_OF_MODE.get(image.mode, _BYTES_OF_OTHER_MODES)
    width, height = image.size
    match image.format:
        case "JPEG":
            each = _BYTES_OF_JPEG.get(image.mode, _BYTES_OF_OTHER_MODES)
        case "WEBP":
            each = _BYTES_OF_WEBP
        case "TIFF":
            each = of_mode + _BYTES_OF_TIFF
            tags = getattr(image, "tag_v2", {})
            # A tile may be larger than the image, and is decoded as a whole.
            across, down = (int(tags.get(tag, 0)) for tag in _TIFF_TILE)
            width, height = max(width, across), max(height, down)
        case _:
            each = of_mode
    return width * height * each


def is_image(path: Path) -> bool:
    """Whether a file is taken for an image: by its suffix, or if that is unusual by its content.

    A file with a usual suffix counts without being opened, so that reading it reports the damage
    if it is no image. Of a file with another suffix, or none, only the header is read.

    Args:
        path: The file.

    Example:
        >>> is_image(Path("photo.JPG")), is_image(Path("missing.txt"))
        (True, False)
    """
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open_image(path):
                return True
    # Decoders report a foreign header in many ways: OSError, SyntaxError, struct.error, ...
    except Exception:
        return False
