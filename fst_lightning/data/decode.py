"""Read image files, which may be damaged or hostile, into one tensor."""

from __future__ import annotations

import math
import os
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from fst_lightning.image_files import decoding_memory, open_image, opening_memory
from fst_lightning.printable import printable

_GRAY_16_BIT = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})
_CHUNK = 64
# More threads would wait for the interpreter lock.
_MAX_THREADS = 16
_REPORT_SECONDS = 5.0
# Memory of all threads for decoding: 16 photographs of 6 megapixels.
_BYTES_AT_A_TIME = 1_000_000_000
# Bytes read from files before the size of an image is known.
_BYTES_OPENED = 500_000_000
_CHUNK_OF_PIXELS = 2**17


class UnreadableImageError(ValueError):
    """A file that cannot be decoded; the message names it, says why, and what to do.

    Args:
        message: The message; a DataLoader puts the traceback of its worker before it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


def decode_images(
    paths: Sequence[Path],
    image_size: int,
    into: Tensor | None = None,
    *,
    report: bool = False,
    processes: int = 1,
) -> Tensor:
    """Decode files in parallel threads.

    The center square of each image is resized, bilinear with antialiasing (that is: the shorter
    side is resized and the longer one cropped). Everything becomes RGB: an alpha channel is
    dropped, 16-bit gray is scaled to 8 bits. Of an animation the first frame counts, and the
    orientation tag of cameras is ignored, as torchvision does.

    Args:
        paths: The files.
        image_size: Height and width of the result in pixels.
        into: Array for the result; None allocates a tensor in memory.
        report: Whether to report progress every few seconds.
        processes: Number of processes that decode in parallel and share cores and memory.

    Returns:
        uint8 of shape (N, 3, image_size, image_size), in the order of the paths.

    Raises:
        UnreadableImageError: If a file cannot be read; names the first one, and the reason.
    """
    shape = (len(paths), 3, image_size, image_size)
    images = torch.empty(shape, dtype=torch.uint8) if into is None else into
    pixels = images.numpy()
    budgets = _Budget(_BYTES_OPENED // processes), _Budget(_BYTES_AT_A_TIME // processes)
    threads = max(1, min((os.cpu_count() or 1) // processes, _MAX_THREADS))
    # A batch may be smaller than one chunk for every thread.
    chunk = max(1, min(_CHUNK, math.ceil(len(paths) / threads)))

    def decode_chunk(start: int) -> None:
        for row in range(start, min(start + chunk, len(paths))):
            pixels[row] = _decode(paths[row], image_size, *budgets).transpose(2, 0, 1)

    with warnings.catch_warnings():
        # Pillow warns of what is an error or harmless here, many lines for each damaged file.
        warnings.simplefilter("ignore")
        with ThreadPoolExecutor(threads) as pool:
            # Iterating raises the first error in order, and cancels the chunks that wait.
            starts = range(0, len(paths), chunk)
            shown = time.monotonic()
            for start, _ in zip(starts, pool.map(decode_chunk, starts), strict=True):
                if report and time.monotonic() - shown > _REPORT_SECONDS:
                    shown = time.monotonic()
                    print(f"decode: {start:,} of {len(paths):,} images, once", flush=True)
    return images


class _Budget:
    """Limits the bytes that all threads hold; a larger image is decoded alone."""

    def __init__(self, most: int) -> None:
        self._most = self._free = most
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        size = min(size, self._most)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= size)
            self._free -= size
        try:
            yield
        finally:
            with self._changed:
                self._free += size
                self._changed.notify_all()


def _decode(
    path: Path, image_size: int, opened: _Budget, decoded: _Budget
) -> npt.NDArray[np.uint8]:
    try:
        # Two budgets, always in this order: with one, threads could wait for each other.
        with (
            opened.hold(opening_memory(path)),
            open_image(path) as image,
            decoded.hold(decoding_memory(image)),
        ):
            return _square(image, image_size)
    # Decoders report damage in many ways: OSError, SyntaxError, struct.error, zlib.error, ...
    except Exception as error:
        reason = printable(error) or type(error).__name__
        raise UnreadableImageError(
            f"Could not read the image {printable(path)}: {reason}. Replace or delete the file."
        ) from error


def _square(image: Image.Image, image_size: int) -> npt.NDArray[np.uint8]:
    image.load()
    # Here, because loading turns a TIFF the way its orientation tag says.
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    square = _to_8_bit(image).resize(
        (image_size, image_size),
        Image.Resampling.BILINEAR,
        box=(left, top, left + side, top + side),
    )
    return np.asarray(square.convert("RGB"))


def _to_8_bit(image: Image.Image) -> Image.Image:
    """RGB or gray; gray takes a quarter of the memory, and becomes RGB when it is small."""
    if image.mode in ("RGB", "L"):
        return image
    if image.mode in ("1", "LA"):
        return image.convert("L")
    if image.mode in _GRAY_16_BIT:
        return _scaled(np.asarray(image))
    if image.mode == "F":
        raise ValueError("it holds floating-point numbers; save it with 8 or 16 bits")
    if image.mode == "P" and "transparency" in image.info:
        # Pillow warns where this is converted to RGB at once.
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _scaled(values: npt.NDArray[np.generic]) -> Image.Image:
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(
            f"its gray values go from {values.min()} to {values.max()}, and 0 to 65535 can be read"
        )
    levels = np.empty(values.shape, dtype=np.uint8)
    source, target = values.reshape(-1), levels.reshape(-1)
    # In chunks, because the sum needs four times the memory.
    for start in range(0, len(source), _CHUNK_OF_PIXELS):
        part = slice(start, start + _CHUNK_OF_PIXELS)
        # 65535 / 255 = 257: white stays white.
        target[part] = (source[part].astype(np.int64) + 128) // 257
    return Image.fromarray(levels)
