import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fst_lightning.data import ImageFolder, ImageSet
from fst_lightning.data.images import TooLargeError
from fst_lightning.data.residency import Cache

SIZE = 8
TRAIN, TEST = 12 * 3 * SIZE * SIZE, 4 * 3 * SIZE * SIZE


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for part, count in (("train", 6), ("test", 2)):
        for label in ("cat", "dog"):
            (tmp_path / "root" / part / label).mkdir(parents=True)
            for row in range(count):
                pixels = np.random.default_rng(row).integers(0, 256, (11, 9, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "root" / part / label / f"{row}.png")
    return tmp_path / "root"


@pytest.fixture
def little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """The 12 training images are many, the 4 to test are few; neither disk nor memory has room."""
    monkeypatch.setattr("fst_lightning.data.residency.MIN_FILES", 10)
    monkeypatch.setattr("fst_lightning.data.images.MAX_BYTES", 1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))


def same(found: ImageSet, expected: ImageSet) -> bool:
    return torch.equal(found.images[:], expected.images) and torch.equal(
        found.labels, expected.labels
    )


@pytest.mark.parametrize("mode", ["auto", "off", "stream"])
@pytest.mark.parametrize("kept", [True, False])
def test_images_are_the_same_wherever_they_are_held(
    mode: Cache, kept: bool, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fst_lightning.data.residency.MIN_FILES", 10)
    options: dict[str, Any] = {"root": root, "image_size": SIZE}
    plain = ImageFolder(**options).load()
    folder = tmp_path / "kept" if kept else None
    data = ImageFolder(**options, cache=mode, cache_folder=folder).load()
    assert same(data.train, plain.train)
    assert same(data.test, plain.test)
    assert (data.mean, data.std) == (plain.mean, plain.std)
    assert data.train.streamed == data.test.streamed == (mode == "stream")
    names = sorted(path.suffixes[-1] for path in (tmp_path / "kept").glob("*"))
    assert (".images" in names) == (kept and mode == "auto")
    if ".images" in names:
        assert names.count(".images") == 1  # The test images are too few.
        (about,) = (tmp_path / "kept").glob("*.json")
        assert json.loads(about.read_text())["bytes"] == TRAIN


@pytest.mark.usefixtures("little_room")
@pytest.mark.parametrize("kept", [True, False])
def test_what_has_no_room_is_streamed_and_that_is_said(
    kept: bool, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "kept" if kept else None
    data = ImageFolder(root=root, image_size=SIZE, cache_folder=folder).load()
    assert data.train.streamed
    assert data.test.streamed
    line, statistics = capsys.readouterr().out.splitlines()
    disk = f"12 decoded images need 0.0 GiB in {folder}, and its disk has 0.0 GiB left; "
    assert line == (
        f"data: {disk if kept else ''}16 images of 8x8 pixels need 0.0 GiB of memory, and the "
        "limit is 0 GiB: they are streamed, decoded whenever they are needed"
    )
    assert statistics == "data: decodes 12 images, once, to compute data.mean and data.std"


@pytest.mark.usefixtures("little_room")
@pytest.mark.parametrize("room", ["memory", "disk"])
def test_one_place_with_room_is_enough(
    room: str,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if room == "memory":
        monkeypatch.setattr("fst_lightning.data.images.MAX_BYTES", TRAIN + TEST)
    else:
        monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": TRAIN}))
    data = ImageFolder(root=root, image_size=SIZE, cache_folder=tmp_path / "kept").load()
    assert not data.train.streamed
    assert not data.test.streamed  # 768 bytes
    assert bool(list((tmp_path / "kept").glob("*.images"))) == (room == "disk")


@pytest.mark.usefixtures("little_room")
def test_off_is_in_memory_or_not_at_all(root: Path) -> None:
    with pytest.raises(TooLargeError, match=r"16 images .*limit is 0 GiB\. Lower `image_size`"):
        ImageFolder(root=root, image_size=SIZE, cache="off").load()


def test_triggered_images_are_held_like_the_others(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {
        "root": root,
        "image_size": SIZE,
        "triggered_root": root / "train",
    }
    plain = ImageFolder(**options).load().triggered
    streamed = ImageFolder(**options, cache="stream").load().triggered
    assert plain is not None
    assert streamed is not None
    assert streamed.streamed
    assert not plain.streamed
    assert same(streamed, plain)
    monkeypatch.setattr("fst_lightning.data.images.MAX_BYTES", 1000)
    auto = ImageFolder(**options).load().triggered
    assert auto is not None
    assert auto.streamed
    with pytest.raises(TooLargeError):
        ImageFolder(**options, cache="off").load()


def test_an_unknown_mode_is_refused(tmp_path: Path) -> None:
    valid = "auto, off, stream"
    with pytest.raises(ValueError, match=f"Expected `cache` to be one of {valid}, but got 'on'"):
        ImageFolder(root=tmp_path, cache="on")  # type: ignore[arg-type]


def test_streamed_images_lie_on_no_device(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.placement=auto or host with data.cache=stream"):
        ImageFolder(root=tmp_path, cache="stream", placement="device")
