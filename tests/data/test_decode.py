import os
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fst_lightning.data import decode
from fst_lightning.data.decode import decode_images


def draw(*shape: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def read(path: Path, size: int = 8) -> npt.NDArray[np.uint8]:
    """Decode one file, as (H, W, 3)."""
    (image,) = decode_images([path], size)
    array: npt.NDArray[np.uint8] = image.permute(1, 2, 0).numpy()
    return array


def png_that_declares(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0"))


@pytest.mark.parametrize("ending", ["png", "bmp", "ppm", "tif", "webp"])
def test_lossless_formats_come_back_as_written(ending: str, tmp_path: Path) -> None:
    pixels = draw(8, 8, 3)
    path = tmp_path / f"image.{ending}"
    # Only WebP heeds the argument.
    Image.fromarray(pixels).save(path, lossless=True)
    assert np.array_equal(read(path), pixels)


def test_jpeg_as_pillow_decodes_it(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    Image.fromarray(draw(8, 8, 3)).save(path)
    assert np.array_equal(read(path), np.asarray(Image.open(path)))


def test_keeps_the_order_over_many_chunks(tmp_path: Path) -> None:
    paths = []
    for value in range(150):
        path = tmp_path / f"{value}.png"
        Image.new("RGB", (2, 2), (value, 0, 0)).save(path)
        paths.append(path)
    assert decode_images(paths, 2)[:, 0, 0, 0].tolist() == list(range(150))


@pytest.mark.parametrize(("width", "height"), [(32, 16), (16, 32), (64, 16)])
def test_resizes_the_shorter_side_and_crops_the_center(
    width: int, height: int, tmp_path: Path
) -> None:
    path = tmp_path / "image.png"
    source = Image.fromarray(draw(height, width, 3))
    source.save(path)
    small = source.resize((width // 2, height // 2), Image.Resampling.BILINEAR)
    left, top = (width // 2 - 8) // 2, (height // 2 - 8) // 2
    expected = np.asarray(small.crop((left, top, left + 8, top + 8)))
    # Pillow chooses the order of its two passes by the shape, and rounds after each.
    assert np.abs(expected.astype(int) - read(path).astype(int)).max() <= 1


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 20))
def test_any_size_of_one_color_stays_that_color(
    tmp_path_factory: pytest.TempPathFactory, width: int, height: int, size: int
) -> None:
    path = tmp_path_factory.mktemp("color") / "image.png"
    Image.new("RGB", (width, height), (10, 200, 77)).save(path)
    assert np.array_equal(read(path, size), np.broadcast_to([10, 200, 77], (size, size, 3)))


def test_gray_is_repeated(tmp_path: Path) -> None:
    path = tmp_path / "image.pgm"
    gray = draw(8, 8)
    Image.fromarray(gray).save(path)
    assert np.array_equal(read(path), np.repeat(gray[:, :, None], 3, axis=2))


def test_alpha_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    pixels = draw(8, 8, 4)
    Image.fromarray(pixels).save(path)
    assert np.array_equal(read(path), pixels[:, :, :3])


@pytest.mark.filterwarnings("error")
def test_a_palette_with_transparency_warns_of_nothing(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    pixels = draw(8, 8) % 4
    image = Image.fromarray(pixels).convert("P")
    palette = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], dtype=np.uint8)
    image.putdata(pixels.flatten().tolist())
    image.putpalette(palette.flatten().tolist())
    image.save(path, transparency=bytes([0, 100, 255, 255]))
    assert np.array_equal(read(path), palette[pixels])


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_16_bit_gray_is_scaled(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"image.{ending}"
    values = np.random.default_rng(0).integers(0, 65536, (8, 8)).astype(np.uint16)
    values[0, :2] = 0, 65535
    if ending == "pgm":  # by hand: older Pillow reads such files, but writes none
        path.write_bytes(b"P5 8 8 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(path)
    expected = np.rint(values / 65535 * 255).astype(np.uint8)
    assert np.array_equal(read(path), np.repeat(expected[:, :, None], 3, axis=2))


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    path = tmp_path / "image.gif"
    red, blue = (Image.new("RGB", (8, 8), color) for color in ("red", "blue"))
    red.save(path, save_all=True, append_images=[blue])
    assert read(path)[0, 0].tolist() == [255, 0, 0]


def test_a_turned_tiff_is_square_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "image.tif"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(draw(8, 20, 3)).save(path, exif=exif)
    assert read(path).shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot identify"),
        (b"not an image at all", "cannot identify"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "cannot identify"),
        (png_that_declares(8, 8), "truncated|broken|unrecognized|not enough|incomplete"),
        (png_that_declares(10_001, 10_000), "10001x10000 pixels.*100,000,000"),
        (png_that_declares(2**31 - 1, 2**31 - 1), "decompression bomb|pixels"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_names_the_file_and_the_reason(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"Could not read the image .*bad\.png: .*({reason})"):
        read(path)


@pytest.mark.parametrize("ending", ["jpg", "png", "bmp", "tif", "webp", "gif"])
def test_a_truncated_file_is_an_error(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"image.{ending}"
    Image.fromarray(draw(40, 40, 3)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"Could not read the image .*image\.{ending}"):
        read(path)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.png: .*No such file"):
        read(tmp_path / "gone.png")


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.tif"
    Image.fromarray(np.zeros((8, 8), dtype=np.float32)).save(path)
    with pytest.raises(ValueError, match="floating-point numbers"):
        read(path)


def test_32_bit_gray_out_of_range_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.tif"
    Image.fromarray(np.full((8, 8), 70_000, dtype=np.int32)).save(path)
    with pytest.raises(ValueError, match="from 70000 to 70000, and 0 to 65535"):
        read(path)


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damage_anywhere_is_an_image_or_the_one_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damage") / "image"
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM"]))
    Image.fromarray(draw(12, 12, 3)).save(path, format=kind)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        shape = read(path, 4).shape
    except ValueError as error:
        if not str(error).startswith(f"Could not read the image {path}: "):
            raise
        return
    assert shape == (4, 4, 3)


def test_the_first_bad_file_is_named_and_the_rest_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = tmp_path / "good.png"
    Image.new("RGB", (2, 2)).save(good)
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"bad")
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr(decode, "_CHUNK", 1)
    with pytest.raises(ValueError, match=r"bad\.png"):
        decode_images([good, bad, *[good] * 50, tmp_path / "later.png"], 2)


def test_threads_hold_few_pixels_at_a_time() -> None:
    """A larger image than all of the budget goes alone; nobody waits for ever."""
    budget, lock = decode._Budget(10), threading.Lock()
    held = most = 0

    def hold(pixels: int) -> None:
        nonlocal held, most
        with budget.hold(pixels):
            with lock:
                held += pixels
                most = max(most, held)
            time.sleep(0.001)
            with lock:
                held -= pixels

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hold, [1, 4, 9, 3, 10, 2, 5, 5] * 10))
    assert 0 < most <= 10
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(hold, [30] * 8))
    assert most == 30
