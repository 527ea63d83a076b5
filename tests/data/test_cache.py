import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fst_lightning.data import cache
from fst_lightning.data.cache import cached_images, fingerprint
from fst_lightning.data.decode import decode_images
from fst_lightning.locks import NoLocksError

SIZE = 8


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "pictures"
    folder.mkdir()
    return [write(folder / f"{row}.png", row) for row in range(7)]


def write(path: Path, seed: int) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (11, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many files each decoding took."""
    counts: list[int] = []

    def counting(paths: list[Path], size: int, into: Tensor, *, report: bool) -> Tensor:
        counts.append(len(paths))
        return decode_images(paths, size, into, report=report)

    monkeypatch.setattr(cache, "decode_images", counting)
    return counts


def names(folder: Path, suffix: str) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix == suffix)


def test_a_second_call_decodes_nothing(
    files: list[Path], tmp_path: Path, decoded: list[int]
) -> None:
    expected = decode_images(files, SIZE)
    for _ in range(3):
        assert torch.equal(cached_images(files, SIZE, tmp_path / "kept"), expected)
    assert decoded == [7]


def test_writing_to_the_images_leaves_the_file(files: list[Path], tmp_path: Path) -> None:
    images = cached_images(files, SIZE, tmp_path / "kept")
    before = images.clone()
    images.zero_()
    assert torch.equal(cached_images(files, SIZE, tmp_path / "kept"), before)


def test_changed_files_are_decoded_again(
    files: list[Path], tmp_path: Path, decoded: list[int]
) -> None:
    kept = tmp_path / "kept"
    cached_images(files, SIZE, kept)
    write(files[2], seed=100)
    assert torch.equal(cached_images(files, SIZE, kept), decode_images(files, SIZE))
    cached_images(files[:-1], SIZE, kept)
    cached_images(files, SIZE + 1, kept)
    cached_images(files[::-1], SIZE, kept)
    assert decoded == [7, 7, 6, 7, 7]
    status = files[0].stat()
    os.utime(files[0], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    cached_images(files, SIZE, kept)
    assert decoded[-1] == 7
    assert len(decoded) == 6


@pytest.mark.parametrize("harm", ["shorter", "longer", "other", "last", "no_json", "half_json"])
def test_a_torn_file_is_made_again(
    harm: str, files: list[Path], tmp_path: Path, decoded: list[int]
) -> None:
    kept = tmp_path / "kept"
    cached_images(files, SIZE, kept)
    (images,), (about,) = kept.glob("*.images"), kept.glob("*.json")
    content = images.read_bytes()
    if harm == "shorter":
        images.write_bytes(content[:-1])
    elif harm == "longer":
        images.write_bytes(content + b"\0")
    elif harm == "other":
        images.write_bytes(bytes(len(content)))
    elif harm == "last":
        images.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif harm == "no_json":
        about.unlink()
    else:
        about.write_text(about.read_text()[:10])
    assert torch.equal(cached_images(files, SIZE, kept), decode_images(files, SIZE))
    assert decoded == [7, 7]


def test_a_damaged_picture_leaves_nothing_behind(files: list[Path], tmp_path: Path) -> None:
    files[3].write_bytes(files[3].read_bytes()[:40])
    with pytest.raises(ValueError, match=r"Could not read the image .*3\.png"):
        cached_images(files, SIZE, tmp_path / "kept")
    assert {path.suffix for path in (tmp_path / "kept").iterdir()} <= {".lock"}


def test_a_full_disk_is_refused_before_the_work(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[int]
) -> None:
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match=r"7 decoded images need .*data\.cache_folder=DIR"):
        cached_images(files, SIZE, tmp_path / "kept")
    assert not decoded


def test_a_folder_without_locks_is_refused_before_the_work(
    lose_locks: Callable[[], str], files: list[Path], tmp_path: Path, decoded: list[int]
) -> None:
    with pytest.raises(NoLocksError, match=lose_locks()) as caught:
        cached_images(files, SIZE, tmp_path / "kept")
    assert "data.cache_folder=DIR" in " ".join(caught.value.__notes__)
    assert not decoded


def test_the_fingerprint_names_a_file_that_is_gone(files: list[Path]) -> None:
    files[1].unlink()
    with pytest.raises(ValueError, match=r"Could not read the image .*1\.png: No such file"):
        fingerprint(files, SIZE)


def test_other_images_of_the_same_sizes_and_times_are_seen(tmp_path: Path) -> None:
    """By the content of a sample: a set of images that takes the place of another one."""
    paths = [tmp_path / f"{number}.ppm" for number in range(3)]

    def write(level: int) -> str:
        for path in paths:
            Image.new("RGB", (4, 4), (level, 0, 0)).save(path)
            os.utime(path, (1_000, 1_000))
        return fingerprint(paths, SIZE)

    first = write(1)
    assert write(2) != first
    assert write(1) == first
