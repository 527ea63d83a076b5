"""How much memory decoding takes is known before it is taken."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fst_lightning import image_files
from fst_lightning.data.decode import _square
from fst_lightning.image_files import decoding_memory, open_image, opening_memory
from tests.hostile.data import tiled

SIDE = 1_600
FORMATS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "JPEG": ("RGB", "JPEG", {}),
    "JPEG in several scans": ("RGB", "JPEG", {"progressive": True, "subsampling": 0}),
    "gray JPEG in several scans": ("L", "JPEG", {"progressive": True}),
    "CMYK JPEG in several scans": ("CMYK", "JPEG", {"progressive": True}),
    "PNG": ("RGB", "PNG", {}),
    "PNG with opacity": ("RGBA", "PNG", {}),
    "gray PNG": ("L", "PNG", {}),
    "gray PNG with opacity": ("LA", "PNG", {}),
    "PNG with a palette": ("P", "PNG", {}),
    "PNG with a palette and transparency": ("P", "PNG", {"transparency": 0}),
    "PNG of 1 bit": ("1", "PNG", {}),
    "PNG of 16 bits": ("I;16", "PNG", {}),
    "WebP": ("RGB", "WEBP", {"method": 0}),
    "lossless WebP": ("RGB", "WEBP", {"lossless": True, "method": 0}),
    "GIF": ("P", "GIF", {}),
    "BMP": ("RGB", "BMP", {}),
    "PPM": ("RGB", "PPM", {}),
    "TIFF": ("RGB", "TIFF", {}),
    "packed TIFF": ("RGB", "TIFF", {"compression": "packbits"}),
    "deflated CMYK TIFF": ("CMYK", "TIFF", {"compression": "tiff_adobe_deflate"}),
    "TIFF of 16 bits": ("I;16", "TIFF", {"compression": "tiff_lzw"}),
    "TIFF of 32 bits": ("I", "TIFF", {}),
}


def save(path: Path, mode: str, kind: str, options: dict[str, Any]) -> None:
    row = np.random.default_rng(0).integers(0, 256, (4, SIDE, 3), dtype=np.uint8)
    image = Image.fromarray(np.tile(row, (SIDE // 4, 1, 1)))
    if mode.startswith("I"):
        values = np.asarray(image.convert("L")).astype(np.uint16 if mode == "I;16" else np.int32)
        image = Image.fromarray(values)
    (image if mode.startswith("I") else image.convert(mode)).save(path, kind, **options)


def memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (line,) = [line for line in lines if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="counts pages as Linux does")
@pytest.mark.parametrize("name", FORMATS)
def test_decoding_takes_no_more_than_was_said(name: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    save(path, *FORMATS[name])
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            before = memory("VmRSS")
            with open_image(path) as image:
                said = decoding_memory(image)
                _square(image, 8)
            os.write(writer, f"{said} {memory('VmHWM') - before}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        said, peak = map(int, file.read().split())
    os.waitpid(child, 0)
    # Buffers of a few megabytes count for nothing where the limit is 500 MB.
    assert peak <= said + opening_memory(path) + 4e6
    assert said <= image_files._BYTES_OF_WEBP * SIDE**2


@pytest.mark.parametrize(
    ("mode", "kind", "each"), [("RGB", "PNG", 5), ("RGB", "JPEG", 10), ("RGB", "WEBP", 17)]
)
def test_an_image_that_would_take_too_much_is_refused(
    mode: str, kind: str, each: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "image"
    Image.new(mode, (100, 50)).save(path, kind)
    monkeypatch.setattr(image_files, "MAX_MEMORY", each * 5_000)
    with open_image(path) as image:
        assert image.size == (100, 50)
    monkeypatch.setattr(image_files, "MAX_MEMORY", each * 5_000 - 1)
    with (
        pytest.raises(ValueError, match=rf"100x50 pixels \({kind}, RGB\) take 0 MB"),
        open_image(path),
    ):
        pass


def test_a_tile_counts_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "image.tif"
    path.write_bytes(tiled(16, 9_000))
    with open_image(path) as image:
        assert image.size == (16, 16)
        assert decoding_memory(image) == 6 * 9_000**2
    path.write_bytes(tiled(16, 10_000))
    told = r"16x16 pixels \(TIFF, L\) take 600 MB to decode"
    with pytest.raises(ValueError, match=told), open_image(path):
        pass


def test_only_regular_files_of_a_bounded_length_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", Path("/dev/zero"), tmp_path):
        with pytest.raises(ValueError, match="no regular file"), open_image(path):
            pass
    long = tmp_path / "long.webp"
    long.touch()
    os.truncate(long, image_files.MAX_BYTES + 1)
    with pytest.raises(ValueError, match="150,000,001 bytes, and the limit"), open_image(long):
        pass
