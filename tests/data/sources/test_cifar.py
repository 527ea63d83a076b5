from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torchvision import datasets

from fst_lightning.data.resize import resize_images
from fst_lightning.data.sources.cifar import CIFAR10, CIFAR100
from fst_lightning.data.sources.source import Source


class Small:
    """Has what torchvision's class has, with eight images."""

    classes = ("cat", "dog", "ship")

    def __init__(self, root: str, train: bool, download: bool) -> None:
        number = 6 if train else 2
        self.data = np.random.default_rng(number).integers(
            0, 256, (number, 32, 32, 3), dtype=np.uint8
        )
        self.targets = [0, 1, 2, 0, 1, 2][:number]


@pytest.mark.parametrize(("name", "kind"), [("CIFAR10", CIFAR10), ("CIFAR100", CIFAR100)])
def test_takes_over_the_arrays(
    name: str, kind: type[CIFAR10 | CIFAR100], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(datasets, name, Small)
    data = kind(root=tmp_path).load()
    original = Small("", True, False)
    assert (len(data.train), len(data.test)) == (6, 2)
    assert data.classes == Small.classes
    assert data.train.labels.tolist() == original.targets
    for image, expected in zip(data.train.images, original.data, strict=True):
        for channel in range(3):
            assert np.array_equal(image[channel].numpy(), expected[:, :, channel])
    assert data.mean == kind(root=tmp_path).mean


def test_resizes_where_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets, "CIFAR10", Small)
    data = CIFAR10(root=tmp_path, image_size=48).load()
    native = CIFAR10(root=tmp_path).load()
    assert data.image_shape == (3, 48, 48)
    assert torch.equal(data.test.images, resize_images(native.test.images, 48))


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        (CIFAR10(root="nowhere", download=False), "cifar-10-python.tar.gz.*cifar-10-batches-py"),
        (CIFAR100(root="nowhere", download=False), "cifar-100-python.tar.gz.*cifar-100-python"),
    ],
)
def test_missing_files_say_where_they_belong(
    source: Source, hint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"from nowhere:.*by hand: get {hint}"):
        source.load()


def test_a_failed_download_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(root: str, train: bool, download: bool) -> None:
        assert download
        raise URLError("no network")

    monkeypatch.setattr(datasets, "CIFAR10", fail)
    with pytest.raises(FileNotFoundError, match=r"no network.*by hand"):
        CIFAR10(root=tmp_path).load()
