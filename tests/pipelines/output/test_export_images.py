"""Exported images, read back, are the run's own: the same model gets the same figures."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fst_lightning.attacks import BadNets
from fst_lightning.data import BackdoorDataModule
from fst_lightning.pipelines.output.export_images import _Writer, export_images
from tests import tiny

Go = Callable[..., dict[str, Any]]


def test_what_is_read_back_gives_the_same_figures(go: Go, tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    trained = go("attack=badnets", "attack.poison_ratio=0.2", f"export={folder}", task="train")
    again = go(
        f"checkpoint={trained['checkpoints']['backdoored']}",
        "model=small_resnet",
        "model.width=4",
        "attack=none",
        "data=image_folder",
        f"data.root={folder}",
        f"data.triggered_root={folder}/triggered",
        "data.image_size=8",
        "defense=none",
    )
    assert again["attack"]["name"] == "none"
    assert {n: again["before"][n] for n in ("ca", "asr", "ra")} == {
        n: trained["before"][n] for n in ("ca", "asr", "ra")
    }
    assert again["data"]["num_train"] == trained["data"]["num_train"]
    assert again["data"]["num_triggered_test"] == trained["data"]["num_triggered_test"]


def test_the_index_says_what_every_file_is(tmp_path: Path) -> None:
    source = tiny.source(num_train=30, num_test=12)
    data = BackdoorDataModule(source, BadNets(poison_ratio=0.4, patch_size=8, target_label=1))
    data.setup()
    export_images(tmp_path / "out", data)
    with (tmp_path / "out" / "index.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    train, test = source.load().train, source.load().test
    assert len(lines) == 30 + 12 + int((test.labels != 1).sum())
    for line in lines:
        part, row = line["file"].split("/")[0], int(line["row"])
        original = train if part == "train" else test
        pixels = torch.from_numpy(np.array(Image.open(tmp_path / "out" / line["file"])))
        expected = original.images[row].permute(1, 2, 0).clone()
        label, poisoned = int(original.labels[row]), False
        assert int(line["original_label"]) == label
        if part == "train":
            poisoned = bool(data.plan.poisoned[row])
            label = 1 if poisoned else label
        if poisoned or part == "triggered":
            expected[-2:, -2:] = 255
        assert torch.equal(pixels, expected)
        assert int(line["given_label"]) == label
        assert line["file"].split("/")[1] == f"class {label}"
        assert (line["poisoned"], line["cover"]) == (str(int(poisoned)), "0")


def test_refuses_a_folder_with_something_in_it(go: Go, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep", encoding="utf-8")
    with pytest.raises(FileExistsError, match="is not empty"):
        go("attack=badnets", f"export={tmp_path}", task="train")
    assert not (tmp_path / "store" / "models").exists()


def test_triggered_folders_are_of_true_classes(go: Go, tmp_path: Path) -> None:
    folder = tmp_path / "triggered"
    (folder / "dog").mkdir(parents=True)
    with pytest.raises(ValueError, match="by number from 0 to 2, but got 'dog'"):
        go(f"data.triggered_root={folder}", "attack=none")
    with pytest.raises(FileNotFoundError, match=r"data.triggered_root"):
        go(f"data.triggered_root={tmp_path}/nowhere", "attack=none")


@pytest.mark.parametrize("name", ["../a", "a/b", "/a", ".a", "..", ""])
def test_names_of_classes_are_no_paths(name: str, tmp_path: Path) -> None:
    """A name that could lead elsewhere gives way to the number of the class."""
    assert _Writer(tmp_path, (name, "b")).names == ("0", "1")
    assert _Writer(tmp_path, ("a", "b")).names == ("a", "b")
