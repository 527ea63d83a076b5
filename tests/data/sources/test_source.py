from typing import Any

import numpy as np
import pytest
import torch

from fst_lightning.data.images import ImageSet
from fst_lightning.data.sources.source import Source


class Counting(Source):
    loads = 0

    def _load(self) -> tuple[ImageSet, ImageSet, tuple[str, ...]]:
        self.loads += 1
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (6, 3, 4, 4), generator=generator).to(torch.uint8)
        rows = ImageSet(images, torch.tensor([0, 1, 0, 1, 0, 1]))
        return rows.subset([0, 1, 2, 3]), rows.subset([4, 5]), ("a", "b")


def test_loads_once() -> None:
    source = Counting()
    assert source.load() is source.load()
    assert source.loads == 1


def test_statistics_come_from_the_training_images_alone() -> None:
    data = Counting().load()
    train = data.train.images.numpy() / 255
    np.testing.assert_allclose(data.mean, train.mean(axis=(0, 2, 3)))
    np.testing.assert_allclose(data.std, train.std(axis=(0, 2, 3)))


def test_given_statistics_win() -> None:
    data = Counting(mean=[0, 0, 0], std=None).load()
    assert data.mean == (0.0, 0.0, 0.0)
    assert data.std == Counting().load().std
    assert Counting(mean=[0.1] * 3, std=[0.2] * 3).load().std == (0.2, 0.2, 0.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 0}, "`image_size`.*of 1 or more, but got 0"),
        ({"image_size": 32.0}, "`image_size`.*but got 32.0"),
        ({"image_size": True}, "`image_size`"),
        ({"crop_padding": -1}, "`crop_padding`.*of 0 or more"),
        ({"mean": [0.5]}, r"`mean` to be 3 finite numbers, but got \[0.5\]"),
        ({"mean": "abc"}, "`mean` to be null or 3 numbers, but got 'abc'"),
        ({"mean": 0.5}, "`mean` to be null or 3 numbers"),
        ({"std": [1, 0, 1]}, "`std` to be 3 positive"),
        ({"std": [1, float("inf"), 1]}, "`std`"),
    ],
)
def test_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Counting(**arguments)
