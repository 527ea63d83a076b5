from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fst_lightning.data import ImageSet, decode, stream
from fst_lightning.data.decode import decode_images
from fst_lightning.data.images import channel_statistics
from fst_lightning.data.statistics import training_statistics
from fst_lightning.data.stream import StreamedImages


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    (tmp_path / "pictures").mkdir()
    return [picture(tmp_path / "pictures" / f"{row}.png", row) for row in range(5)]


def picture(path: Path, seed: int) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def streamed(files: list[Path]) -> ImageSet:
    return ImageSet(StreamedImages(files, 4).as_tensor(), torch.zeros(len(files)).long())


def expected(files: list[Path]) -> tuple[list[float], list[float]]:
    mean, std = channel_statistics(decode_images(files, 4))
    return list(mean), list(std)


def found(files: list[Path], folder: Path | None) -> tuple[list[float], list[float]]:
    mean, std = training_statistics(streamed(files), folder)
    return list(mean), list(std)


def test_they_are_kept(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = found(files, tmp_path / "kept")
    assert first == expected(files)
    monkeypatch.setattr(stream, "decode_images", None)
    assert found(files, tmp_path / "kept") == first
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        found(files, None)
    monkeypatch.setattr(stream, "decode_images", decode.decode_images)
    picture(files[0], 100)
    assert found(files, tmp_path / "kept") == expected(files) != first


@pytest.mark.parametrize(
    "content",
    ["", "[[0.5, 0.5, 0.5]", "[[0.5, 0.5], [1, 1, 1]]", "[[0, 0, 0], [1, 0, 1]]", "3", "9" * 2000],
)
def test_what_is_no_statistics_is_computed_again(
    content: str, files: list[Path], tmp_path: Path
) -> None:
    found(files, tmp_path)
    (kept,) = tmp_path.glob("*.json")
    kept.write_text(content)
    assert found(files, tmp_path) == expected(files)
    assert found(files, tmp_path) == expected(files)


def test_images_in_memory_leave_nothing(files: list[Path], tmp_path: Path) -> None:
    train = streamed(files).in_memory()
    assert training_statistics(train, tmp_path / "kept") == channel_statistics(train.images)
    assert not (tmp_path / "kept").exists()


def test_a_folder_that_cannot_be_written_is_no_obstacle(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a file, not a folder")
    assert found(files, tmp_path / "kept") == expected(files)
