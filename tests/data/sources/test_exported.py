"""Exported images are read back as what they are: changed ones are nobody's clean images."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from fst_lightning.attacks import BadNets
from fst_lightning.data import BackdoorDataModule, ImageFolder
from fst_lightning.data.sources.exported import changed_files
from fst_lightning.pipelines.output.export_images import export_images
from tests import tiny

HEADER = "file,row,original_label,given_label,poisoned,cover\n"


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """40 training images, every other one with a white patch and class 1."""
    data = BackdoorDataModule(
        tiny.source(num_train=40, num_test=12),
        BadNets(poison_ratio=0.5, patch_size=8, target_label=1),
    )
    data.setup()
    export_images(tmp_path / "out", data)
    return tmp_path / "out"


@pytest.mark.parametrize("balanced", [False, True])
def test_clean_images_are_drawn_from_the_rows_that_no_attack_changed(
    balanced: bool, exported: Path
) -> None:
    data = BackdoorDataModule(
        ImageFolder(root=exported, image_size=8),
        purpose="purify",
        clean_ratio=1.0,
        balanced=balanced,
    )
    with pytest.warns(UserWarning, match=r"index\.csv marks 20 of 40 training images as changed"):
        data.setup()
    assert len(data.train_rows) == 20
    clean = [
        Image.open(exported / line.split(",")[0]).convert("RGB").tobytes()
        for line in (exported / "index.csv").read_text(encoding="utf-8").splitlines()
        if line.startswith("train/") and line.endswith(",0,0")
    ]
    held = [bytes(image.permute(1, 2, 0).flatten().tolist()) for image in data.train_rows.images]
    assert sorted(held) == sorted(clean)
    half = BackdoorDataModule(data.source, purpose="purify", clean_ratio=0.5, balanced=balanced)
    half.setup()
    assert len(half.train_rows) == 10
    # A training takes all of them, as they were delivered.
    everything = BackdoorDataModule(data.source, BadNets(poison_ratio=0.1))
    everything.setup()
    assert len(everything.train_rows) == 40


def test_cover_rows_and_names_in_other_unicode_forms(tmp_path: Path) -> None:
    files = [tmp_path / "train" / name / f"{i}.png" for name in ("é", "b") for i in range(3)]
    (tmp_path / "index.csv").write_text(
        HEADER
        + "train/e\u0301/0.png,0,0,0,1,0\ntrain/b/1.png,1,0,0,0,1\ntrain/b/2.png,2,0,0,0,0\n",
        encoding="utf-8",
    )
    changed = changed_files(tmp_path, files)
    assert changed is not None
    assert changed.tolist() == [True, False, False, False, True, False]


def test_a_list_of_somebody_else_does_not_count(tmp_path: Path) -> None:
    assert changed_files(tmp_path, []) is None
    (tmp_path / "index.csv").write_text("file,label\na.png,1\n", encoding="utf-8")
    assert changed_files(tmp_path, [tmp_path / "a.png"]) is None


@pytest.mark.parametrize(
    "content", [HEADER.encode() + b"\xff,0,0,0,1,0\n", HEADER.encode() + b"a" * 200_000]
)
def test_a_list_that_cannot_be_read_is_an_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "index.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"Could not read .*index\.csv.*Mend the file"):
        changed_files(tmp_path, [])


def test_a_list_that_is_a_link_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "out.csv").write_text(HEADER, encoding="utf-8")
    (tmp_path / "root" / "index.csv").symlink_to(tmp_path / "out.csv")
    with pytest.raises(ValueError, match="is a link out"):
        changed_files(tmp_path / "root", [])


def test_reserved_rows_take_their_marks_along(exported: Path) -> None:
    from fst_lightning.data import reserve

    source = ImageFolder(root=exported, image_size=8)
    with pytest.warns(UserWarning, match="changed by an attack"):
        changed = source.load().changed
    assert changed is not None
    rows = torch.arange(40) % 3 == 0
    rest, _ = reserve(source, rows)
    left = rest.load().changed
    assert left is not None
    assert torch.equal(left, changed[~rows])
