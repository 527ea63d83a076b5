"""Faulty images, image folders and arrays: one generator a fault."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fst_lightning.attacks.common.pictures import pictures_in, read_patch, read_picture
from fst_lightning.data import ImageFolder, Npz
from fst_lightning.data.sources.triggered import read_triggered
from tests.hostile.case import CANARY, Case, Kind
from tests.hostile.damage import damaged
from tests.hostile.pickles import GADGETS, bare

_COLORS = np.random.default_rng(0).integers(0, 256, (4, 24, 24, 3), dtype=np.uint8)


def picture(path: Path, number: int = 0, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(_COLORS[number % 4]).save(path, **options)


def class_folders(root: Path, classes: tuple[str, ...] = ("cat", "dog"), each: int = 3) -> None:
    for name in classes:
        for number in range(each):
            picture(root / name / f"{number}.png", number)


def _folder(root: Path) -> None:
    class_folders(root / "train")
    class_folders(root / "test", each=1)


def _pictures(folder: Path) -> None:
    for number in range(3):
        picture(folder / f"{number}.png", number)


def _npz(path: Path, packed: bool = False, /, **changes: Any) -> None:
    arrays: dict[str, Any] = {
        "x_train": np.zeros((6, 8, 8, 3), np.uint8)
        + np.arange(6, dtype=np.uint8)[:, None, None, None],
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": np.zeros((4, 8, 8, 3), np.uint8),
        "y_test": np.array([2, 1, 0, 0]),
    }
    save = np.savez_compressed if packed else np.savez
    save(path, **{k: v for k, v in (arrays | changes).items() if v is not None})


def _read_folder(path: Path) -> object:
    return ImageFolder(root=path, image_size=8).load()


def _read_picture(path: Path) -> object:
    return read_picture(path, 3, 8, 8), read_patch(path, 3, 8, 8)


FOLDER = Kind("image folder", "images", _read_folder, _folder)
TRIGGERED = Kind(
    "data.triggered_root",
    "triggered",
    lambda path: read_triggered(path, ("cat", "dog"), 8),
    lambda path: class_folders(path, ("cat", "1")),
)
NPZ = Kind("npz", "a.npz", lambda path: Npz(root=path).load(), _npz)
PICTURES = Kind(
    "attack.folder",
    "pictures",
    lambda path: [_read_picture(file) for file in pictures_in(str(path))],
    _pictures,
)
PICTURE = Kind("attack.image", "a.png", _read_picture, picture)
KINDS = (FOLDER, TRIGGERED, PICTURES, PICTURE, NPZ)

# Image files


def _chunk(kind: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def png(width: int, height: int, color: int = 2, bits: int = 8, data: bytes = b"") -> bytes:
    """A PNG that declares a size, whatever it holds."""
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    palette = _chunk(b"PLTE", bytes(768)) if color == 3 else b""
    content = _chunk(b"IDAT", data or zlib.compress(b"\0"))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + palette + content + _chunk(b"IEND", b"")


def _zeros(count: int) -> bytes:
    pack = zlib.compressobj(9)
    parts = [pack.compress(bytes(min(2**20, count - start))) for start in range(0, count, 2**20)]
    return b"".join(parts) + pack.flush()


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def tiled(side: int, tile: int, data: bytes = b"") -> bytes:
    """A gray TIFF whose only tile, deflated, may be larger than the image."""
    start = 8 + 2 + 12 * 10 + 4
    entries = [(256, side), (257, side), (258, 8), (259, 8), (262, 1), (277, 1)]
    entries += [(322, tile), (323, tile), (324, start), (325, len(data))]
    listed = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in entries)
    return struct.pack("<2sHLH", b"II", 42, 8, len(entries)) + listed + bytes(4) + data


def tagged(number: int, size: int, *, big: bool = False) -> bytes:
    """A gray TIFF with many tags over the same bytes."""
    kinds = [(256, 4, 8), (257, 4, 8), (258, 3, 8), (259, 3, 1), (262, 3, 1), (277, 3, 1)]
    head, entry = ("<2sHHHQQ", "<HHQQ") if big else ("<2sHLH", "<HHLL")
    start = struct.calcsize(head) + struct.calcsize(entry) * (len(kinds) + 3 + number)
    start += 8 if big else 4
    entries = [(tag, kind, 1, value) for tag, kind, value in kinds]
    entries += [(273, 4, 1, start), (278, 4, 1, 8), (279, 4, 1, 64)]
    entries += [(52_000 + tag, 7, size, start) for tag in range(number)]
    offsets = (b"II", 43, 8, 0, 16, len(entries)) if big else (b"II", 42, 8, len(entries))
    listed = b"".join(struct.pack(entry, *each) for each in sorted(entries))
    return struct.pack(head, *offsets) + listed + bytes(8 if big else 4) + bytes(max(64, size))


def _webp(width: int, height: int) -> bytes:
    inner = _encoded(Image.new("RGB", (4, 4)), "WEBP", lossless=True)[12:]
    sides = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + sides + inner
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _plain_webp(side: int) -> bytes:
    return _encoded(Image.new("RGB", (side, side), (1, 2, 3)), "WEBP", lossless=True, method=0)


def _gif(screen: tuple[int, int], frame: tuple[int, int]) -> bytes:
    content = bytearray(_encoded(Image.new("P", (4, 4)), "GIF"))
    content[6:10] = struct.pack("<HH", *screen)
    start = 13 + (3 * 2 ** ((content[10] & 7) + 1) if content[10] & 0x80 else 0)
    place = content.index(b"\x2c", start)
    content[place + 5 : place + 9] = struct.pack("<HH", *frame)
    return bytes(content)


def _sparse(path: Path, start: bytes) -> None:
    path.write_bytes(start)
    os.truncate(path, 10 * 2**30)


_GRAY = Image.fromarray(_COLORS[0, :, :, 0])
_RGB = Image.fromarray(_COLORS[0])
_WORKS: dict[str, Callable[[], bytes]] = {
    "16-bit gray": lambda: _encoded(Image.fromarray(np.full((9, 9), 40_000, np.uint16)), "PNG"),
    "CMYK": lambda: _encoded(_RGB.convert("CMYK"), "JPEG"),
    "palette": lambda: _encoded(_RGB.convert("P"), "PNG"),
    "palette with transparency": lambda: _encoded(_RGB.convert("P"), "PNG", transparency=0),
    "alpha": lambda: _encoded(_RGB.convert("RGBA"), "PNG"),
    "gray with alpha": lambda: _encoded(_GRAY.convert("LA"), "PNG"),
    "one bit": lambda: _encoded(_GRAY.convert("1"), "PNG"),
    "gray": lambda: _encoded(_GRAY, "JPEG"),
    "another format than the name says": lambda: _encoded(_RGB, "BMP"),
    "one pixel": lambda: _encoded(Image.new("RGB", (1, 1)), "PNG"),
    "a line": lambda: _encoded(Image.new("RGB", (5_000, 1)), "PNG"),
    "an animation": lambda: _encoded(
        _RGB, "GIF", save_all=True, append_images=[Image.new("RGB", (24, 24))]
    ),
    "a TIFF with a tag of its own": lambda: tagged(1, 1_000),
    "colors of the laboratory": lambda: _encoded(_RGB.convert("LAB"), "TIFF"),
}
_REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "zero bytes": (lambda: b"", "cannot identify"),
    "text": (lambda: b"not an image at all", "cannot identify"),
    "PostScript, which is a program": (
        lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(x) (w) file\n",
        "cannot identify",
    ),
    "a pickle": (lambda: bare(GADGETS["os.mkdir"][0]), "cannot identify"),
    "SVG": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>", "cannot identify"),
    "floating-point numbers": (
        lambda: _encoded(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF"),
        "floating-point",
    ),
    "32-bit gray": (
        lambda: _encoded(Image.fromarray(np.full((8, 8), 70_000, np.int32)), "TIFF"),
        "from 70000 to 70000",
    ),
    "a PNG of 2^62 pixels": (lambda: png(2**31 - 1, 2**31 - 1), "bomb|pixels"),
    "a PNG of 100,010,000 pixels": (lambda: png(10_001, 10_000), "10001x10000 pixels"),
    "a PNG of 81 megapixels and no data": (lambda: png(9_000, 9_000), "truncated"),
    "a PNG of 80 megapixels with opacity": (lambda: png(9_000, 9_000, 6), "MB to decode"),
    "a PNG of 81 megapixels with a palette": (lambda: png(9_000, 9_000, 3), "MB to decode"),
    "a PNG of 81 megapixels of 16 bits": (lambda: png(9_000, 9_000, 0, 16), "MB to decode"),
    "a WebP of 36 megapixels": (lambda: _webp(6_000, 6_000), "MB to decode|decoder"),
    "a TIFF with 1,500 tags over the same bytes": (
        lambda: tagged(1_500, 100_000),
        "its 1,509 tags announce 150,",
    ),
    "a BigTIFF with 1,500 tags over the same bytes": (
        lambda: tagged(1_500, 100_000, big=True),
        "its 1,509 tags announce 150,",
    ),
    "a TIFF of one huge tile": (lambda: tiled(16, 20_000), "MB to decode"),
    "a TIFF of one endless tile": (lambda: tiled(16, 2**31 - 16), "MB to decode"),
    "a PNG one pixel high": (lambda: png(100_000_000, 1), ""),
    "a PNG of 0 pixels": (lambda: png(0, 8), ""),
    "a GIF with a frame of 4 gigapixels": (lambda: _gif((4, 4), (65_535, 65_535)), "bomb|pixels"),
    "a GIF of 4 gigapixels": (lambda: _gif((65_535, 65_535), (4, 4)), "bomb|pixels"),
    "a GIF of 10^8 pixels and no data": (lambda: _gif((10_000, 10_000), (10_000, 10_000)), ""),
    "a WebP of 268 megapixels": (lambda: _webp(16_383, 16_383), "bomb|pixels|decoder"),
    "a WebP of 3 gigapixels": (lambda: _webp(2**24, 200), "bomb|pixels|decoder"),
    "a BMP of 10^8 pixels and no data": (
        lambda: (lambda d: d[:18] + struct.pack("<ii", 10_000, -9_999) + d[26:])(
            _encoded(_RGB, "BMP")
        ),
        "",
    ),
    "a PPM of 10^8 pixels and no data": (lambda: b"P6 10000 10000 255\n", ""),
    "a PPM with a number of 5,000 digits": (lambda: b"P6 " + b"9" * 5_000 + b" 5 255\n", ""),
}
_PATTERNS = ("floating-point numbers", "32-bit gray")
_HEAVY: dict[str, tuple[Callable[[], bytes], str | None]] = {
    "a PNG bomb with a wrong checksum": (
        lambda: png(10_000, 10_000, data=_zeros(10_000 * 30_001)[:-4] + b"abcd"),
        "broken data stream",
    ),
    "a JPEG of 10^8 pixels, cut": (
        lambda: _encoded(Image.new("RGB", (10_000, 9_999)), "JPEG")[:2_000],
        "MB to decode",
    ),
    "a JPEG of 49 megapixels, cut": (
        lambda: _encoded(Image.new("RGB", (7_000, 7_000)), "JPEG", progressive=True)[:2_000],
        "truncated",
    ),
    "a CMYK JPEG of 41 megapixels in several scans, cut": (
        lambda: _encoded(Image.new("CMYK", (6_400, 6_400)), "JPEG", progressive=True)[:-100],
        "truncated",
    ),
    "a CMYK JPEG of 10^8 pixels in several scans, cut": (
        lambda: _encoded(Image.new("CMYK", (10_000, 9_999)), "JPEG", progressive=True)[:-100],
        "MB to decode",
    ),
    "a TIFF of one tile of 81 megapixels": (
        lambda: tiled(16, 9_000, _zeros(9_000 * 9_000)),
        None,
    ),
    "a lossless WebP of 29 megapixels": (lambda: _plain_webp(5_400), None),
    "a lossless WebP of 36 megapixels": (lambda: _plain_webp(6_000), "MB to decode"),
    "a PNG bomb with opacity": (
        lambda: png(7_900, 7_900, 6, data=_zeros(7_900 * 31_601)),
        None,
    ),
    "a PNG bomb with a palette": (lambda: png(7_400, 7_400, 3, data=_zeros(7_400 * 7_401)), None),
    "a PNG bomb of 16 bits": (lambda: png(8_400, 8_400, 0, 16, _zeros(8_400 * 16_801)), None),
}


def image_files(kind: Kind) -> Iterator[Case]:
    """One file among good ones."""

    def case(fault: str, content: Callable[[], bytes], says: str | None, **more: Any) -> Case:
        def write(path: Path) -> None:
            kind.write(path)
            one = next(iter(sorted(path.rglob("0.png")))) if path.is_dir() else path
            one.write_bytes(content())

        told = None if says is None else rf"(0|a)\.png.*: .*({says})"
        return Case(kind.name, fault, write, told, **more)

    for fault, make in _WORKS.items():
        yield case(fault, make, None)
    for fault, (make, says) in _REFUSED.items():
        # The pattern of an attack may be made of any numbers.
        if kind in (FOLDER, TRIGGERED) or fault not in _PATTERNS:
            yield case(fault, make, says)
    if kind in (FOLDER, PICTURE):
        for fault, (make, expected) in _HEAVY.items():
            yield case(fault, make, expected, heavy=True)
    for ending in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM"):
        content = _encoded(_RGB, ending)
        half = content[: len(content) // 2]
        yield case(f"half of a {ending}", partial(bytes, half), "")


def _below(path: Path, name: str, change: Callable[[Path], object]) -> None:
    change(path / name)


def folders() -> Iterator[Case]:
    """What a folder can hold besides images."""

    def case(
        fault: str, change: Callable[[Path], object], says: str | None, kind: Kind = FOLDER
    ) -> Case:
        def write(path: Path) -> None:
            kind.write(path)
            change(path)

        return Case(kind.name, fault, write, says)

    def link(path: Path, target: str | Path) -> None:
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(target)

    def bomb(path: Path) -> None:
        for level in range(30):
            (path / "train/cat" / f"{level}").mkdir()
            for name in ("a", "b"):
                (path / "train/cat" / f"{level}" / name).symlink_to(f"../{level + 1}")

    def deep(path: Path) -> None:
        here = path / "train/cat"
        for _ in range(200):
            here = here / "d"
            here.mkdir()

    def strange(path: bytes) -> Callable[[Path], None]:
        def make(root: Path) -> None:
            file = root / os.fsdecode(path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(_encoded(_RGB, "PNG"))

        return make

    leads_out = "symbolic link out of"
    here: dict[str, tuple[Callable[[Path], object], str | None]] = {
        "a link out to a file": (lambda p: link(p / "l.png", "/etc/hostname"), leads_out),
        "a link out to a folder": (lambda p: link(p / "l", "/etc"), leads_out),
        "a link out by dots": (lambda p: link(p / "l", "../../../../.."), leads_out),
        "a link to nothing": (lambda p: link(p / "l.png", "gone"), r"l\.png.*No such file"),
        "a link to itself": (lambda p: link(p / "l.png", "l.png"), "Could not list"),
        "a link to the folder above": (lambda p: link(p / "l", ".."), None),
        "a sparse WebP of 10 GB": (
            lambda p: _sparse(p / "l.png", _webp(4, 4)[:12]),
            "bytes, and the limit",
        ),
        "a pipe": (lambda p: os.mkfifo(p / "l.png"), None),
    }
    for fault, (change, says) in here.items():
        for kind, name in ((FOLDER, "train/cat"), (TRIGGERED, "cat"), (PICTURES, ".")):
            # There is no folder above in attack.folder, but the one outside.
            out = kind is PICTURES and fault == "a link to the folder above"
            change_in = partial(_below, name=name, change=change)
            yield case(fault, change_in, leads_out if out else says, kind)
    yield case("a class that is a link out", lambda p: link(p / "train/fox", "/etc"), leads_out)
    yield case("a name that is no UTF-8", strange(b"train/cat/\xff\xfe.png"), None)
    yield case("a class that is no UTF-8", strange(b"train/\xff\xfe/a.png"), "Rename the folder")
    yield case("a name that controls the terminal", strange(b"train/cat/\x1b[2J.png"), None)
    yield case(
        "a class that controls the terminal", strange(b"train/\x1b[2J/a.png"), "Rename the folder"
    )
    yield case(
        "a damaged file whose name controls the terminal",
        lambda p: (p / "train/cat/\x1b[2J\x07.png").write_bytes(b""),
        r"\\x1b\[2J\\x07\.png",
    )
    yield case(
        "a damaged file whose name is no UTF-8",
        lambda p: (p / os.fsdecode(b"train/cat/\xff.png")).write_bytes(b""),
        r"\\udcff\.png",
    )
    yield case(
        "a triggered class that controls the terminal",
        strange(b"\x1b[2J/a.png"),
        "Rename",
        TRIGGERED,
    )
    yield case("folders of links to each other", bomb, None)
    yield case("folders 200 deep", deep, "at most 64 deep")
    yield case("an empty class", lambda p: (p / "train/fox").mkdir(), "Found no image in the class")
    yield case(
        "a class to test alone", lambda p: class_folders(p / "test", ("fox",)), "has not: fox"
    )
    yield case(
        "a triggered class that the data lacks",
        lambda p: class_folders(p, ("fox",)),
        "fox",
        TRIGGERED,
    )
    yield case(
        "two folders of one triggered class", lambda p: class_folders(p, ("0",)), None, TRIGGERED
    )
    for fault, make, says in (
        ("one class only", lambda p: class_folders(p, ("cat",)), "at least 2 classes"),
        ("no class", lambda p: p.mkdir(), "Found no folder"),
        ("a file", lambda p: p.write_bytes(b"x"), "it is a file"),
        ("nothing", lambda p: None, "nothing is there"),
        ("one image of each class", lambda p: class_folders(p, each=1), "No class .* 2 images"),
    ):
        yield Case(FOLDER.name, fault, make, says)


# NumPy archives


def _header(text: str, version: tuple[int, int] = (1, 0), length: int | None = None) -> bytes:
    line = text.encode("latin1") + b"\n"
    size = struct.pack("<H" if version == (1, 0) else "<I", len(line) if length is None else length)
    return b"\x93NUMPY" + bytes(version) + size + line


def _described(descr: str, shape: str) -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"


def arrays() -> Iterator[Case]:
    """Archives of arrays."""
    images, labels = np.zeros((6, 8, 8, 3)), np.zeros(6, np.int64)
    contents: dict[str, tuple[dict[str, Any], str]] = {
        "labels below 0": ({"y_train": labels - 1}, "labels from -1"),
        "labels above the classes": ({"y_test": np.array([0, 1, 3, 0])}, "labels from 0 to 3"),
        "a label of 2^60": ({"y_train": labels + 2**60}, "each label from 0"),
        "a label of 2^64": (
            {"y_train": labels.astype(np.uint64) - np.uint64(1)},
            "18446744073709551615",
        ),
        "labels that are no integers": ({"y_train": labels / 2}, "float64"),
        "labels in words": ({"y_train": np.array(["a"] * 6)}, "to be integers"),
        "labels in a square": ({"y_train": np.eye(6, dtype=int)}, r"\(6, 6\)"),
        "no label": ({"y_train": labels[:0]}, "to be integers"),
        "fewer labels than images": ({"y_train": np.arange(3)}, "6 images and 3 labels"),
        "one class only": ({"y_train": labels, "y_test": labels[:4]}, "at least 2 classes"),
        "four channels": ({"x_train": np.zeros((6, 8, 8, 4), np.uint8)}, "of shape"),
        "flat images": ({"x_train": np.zeros((6, 64), np.uint8)}, "of shape"),
        "images without pixels": ({"x_train": np.zeros((6, 0, 0, 3), np.uint8)}, "of shape"),
        "images of six dimensions": ({"x_train": np.zeros((6, 1, 1, 1, 8, 8), np.uint8)}, "shape"),
        "images of 64-bit integers": ({"x_train": images.astype(int)}, "int64"),
        "complex images": ({"x_train": images.astype(complex)}, "complex128"),
        "images above 1": ({"x_train": images + 255}, "Divide"),
        "images below 0": ({"x_train": images - 0.5}, "from -0.5"),
        "NaN": ({"x_train": images * np.nan}, "nan"),
        "infinity": ({"x_train": images + np.inf}, "inf"),
        "test images of another size": ({"x_test": np.zeros((4, 9, 9, 3), np.uint8)}, "one shape"),
        "images that are no square": ({"x_train": np.zeros((6, 8, 9, 3), np.uint8)}, "8x9"),
        "a missing array": ({"x_test": None}, "no array x_test"),
        "objects": ({"x_train": np.array([{}, [], 1, 2, 3, 4], dtype=object)}, "Python objects"),
        "dates": ({"y_train": np.zeros(6, "M8[s]")}, "to be integers"),
        "records": ({"y_train": np.zeros(6, [("a", "i4")])}, "to be integers"),
    }
    for fault, (changes, says) in contents.items():
        yield Case(NPZ.name, fault, partial(_npz, **changes), says)
    seen = "damaged header|impossible shape|announces"
    members: dict[str, tuple[bytes, str]] = {
        "15 GB announced": (_header(_described("'|u1'", "(5000, 1000, 1000, 3)")), "zip bomb"),
        "2^60 bytes announced": (_header(_described("'|u1'", f"({2**60},)")), "limit is 16 GiB"),
        "2^124 bytes announced": (_header(_described("'|u1'", f"({2**62}, {2**62})")), "limit is"),
        "a pickle of code": (
            _header(_described("'|O'", "(1,)")) + bare(GADGETS["os.mkdir"][0]),
            "Python objects",
        ),
        "objects in records": (_header(_described("[('a', '|O')]", "(1,)")), "Python objects"),
        "2^62 numbers of no bytes": (_header(_described("'|V0'", f"({2**62},)")), seen),
        "2^62 texts of no letters": (_header(_described("'<U0'", f"({2**62},)")), seen),
        "an array without an end": (_header(_described("'<i8'", f"({2**62}, 0)")), ""),
        "a negative shape": (_header(_described("'<i8'", "(-1,)")), seen),
        "a shape that is true": (_header(_described("'<i8'", "(True,)")) + bytes(8), seen),
        "a shape of half a number": (_header(_described("'<i8'", "(1.5,)")), seen),
        "a hundred dimensions": (_header(_described("'<i8'", "(" + "1," * 100 + ")")), seen),
        "a shape of 5,000 digits": (_header(_described("'<i8'", f"({'9' * 5000},)")), seen),
        "a type of 2 GB": (_header(_described("[('a', '<f4', (1000000000,))]", "(6,)")), seen),
        "a type of brackets": (_header(_described("[[[]]]", "(6,)")), seen),
        "no type": (_header(_described("None", "(6,)")), seen),
        "9,000 signs": (_header(_described("'<i8'", "-" * 9_000 + "1")), seen),
        "9,000 brackets": (_header("[" * 9_000), seen),
        "code as a shape": (
            _header(_described("'<i8'", f"__import__('os').mkdir({CANARY!r})")),
            seen,
        ),
        "a long header": (_header(" " * 60_000), "more than 10,000 bytes"),
        "a header of 4 GB": (_header("", (2, 0), 2**32 - 1), "more than 10,000 bytes"),
        "another version": (_header("", (3, 0)), "version"),
        "no array": (b"", "is no array"),
        "half an array": (_header(_described("'<i8'", "(6,)")) + bytes(20), "announces 48 bytes"),
        "more than an array": (_header(_described("'<i8'", "(6,)")) + bytes(60), "announces 48"),
    }
    for fault, (content, says) in members.items():
        yield Case(NPZ.name, fault, partial(_with_member, content=content), says)
    packed = _header(_described("'|u1'", f"({2**29 // 192}, 8, 8, 3)")) + bytes(2**29)
    yield Case(
        NPZ.name,
        "zip bomb of 512 MB",
        lambda path: _with_member(path, packed, zipfile.ZIP_DEFLATED),
        "zip bomb",
        heavy=True,
    )
    spaces = _header(" " * 2**28, (2, 0))
    yield Case(
        NPZ.name,
        "zip bomb of a header",
        lambda path: _with_member(path, spaces, zipfile.ZIP_DEFLATED),
        "more than 10,000 bytes",
        heavy=True,
    )
    large = np.float16(0.5)
    heavy: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
        "250 million labels of a byte": (
            lambda: {"y_train": np.zeros(250_000_000, np.int8)},
            "zip bomb",
        ),
        "30 million labels of a byte": (
            lambda: {"y_train": np.zeros(30_000_000, np.int8)},
            "6 images and 30000000 labels",
        ),
        "a class for each of 20 million images": (
            lambda: {
                "x_train": np.zeros((20_000_000, 1, 1), np.uint8),
                "y_train": np.arange(20_000_000, dtype=np.int32),
                "x_test": np.zeros((4, 1, 1), np.uint8),
            },
            "at most 100,000 classes",
        ),
        "images of 41 megapixels, of halves": (
            lambda: {"x_train": np.full((1, 3, 6_400, 6_400), large), "y_train": np.array([0])},
            "one shape",
        ),
        "images of 29 megapixels, with a NaN at the end": (
            lambda: _large(np.full((1, 3, 5_400, 5_400), large), np.nan),
            "nan",
        ),
        "gray images of 88 megapixels, with a NaN at the end": (
            lambda: _large(np.full((1, 9_400, 9_400), large), np.nan),
            "nan",
        ),
        "gray images of 36 megapixels and others": (
            lambda: {"x_train": np.zeros((6, 6_000, 6_000), np.uint8)},
            "one shape",
        ),
        "gray images of 36 megapixels and a missing label": (
            lambda: {"x_train": np.zeros((6, 6_000, 6_000), np.uint8), "y_train": np.arange(5)},
            "6 images and 5 labels",
        ),
    }
    for fault, (values, says) in heavy.items():

        def write(path: Path, make: Callable[[], dict[str, Any]] = values) -> None:
            _npz(path, True, **make())

        yield Case(NPZ.name, fault, write, says, heavy=True)
    yield Case(NPZ.name, "an array twice", lambda path: _with_member(path, b"", twice=True), "once")
    yield Case(
        NPZ.name,
        "an array of another name that controls the terminal",
        lambda path: _npz(path, **{"\x1b[2J": labels, "x_test": None}),
        r"\\x1b\[2J",
    )
    yield Case(NPZ.name, "no archive", lambda path: path.write_bytes(b"x" * 100), "not a NumPy")
    yield Case(NPZ.name, "a folder", lambda path: path.mkdir(), "found a folder")
    yield Case(NPZ.name, "nothing", lambda path: None, "found nothing")


def _large(images: np.ndarray[Any, np.dtype[Any]], last: float) -> dict[str, Any]:
    images.reshape(-1)[-1] = last
    return {
        **{"x_train": images, "x_test": np.zeros(images.shape, np.uint8)},
        **dict.fromkeys(("y_train", "y_test"), np.zeros(1, np.int64)),
    }


def _with_member(
    path: Path, content: bytes, method: int = zipfile.ZIP_STORED, *, twice: bool = False
) -> None:
    """The good archive with other bytes for `x_train`, or with `x_train` a second time."""
    _npz(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, good in members.items():
            archive.writestr(name, content if name == "x_train.npy" and not twice else good)
        if twice:
            archive.writestr("x_train.npy", members["x_train.npy"])


def cases() -> Iterator[Case]:
    """The whole corpus of images and arrays."""
    for kind in KINDS:
        yield Case(kind.name, "nothing wrong", kind.write, None)
    yield from image_files(FOLDER)
    yield from image_files(TRIGGERED)
    yield from image_files(PICTURES)
    yield from image_files(PICTURE)
    yield from folders()
    yield from damaged(FOLDER, "train/cat/0.png", cuts_may_work=True)
    yield from damaged(TRIGGERED, "cat/0.png", cuts_may_work=True)
    yield from damaged(PICTURES, "0.png", cuts_may_work=True)
    yield from damaged(PICTURE, cuts_may_work=True)
    yield from arrays()
    yield from damaged(NPZ)
