from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from fst_lightning.data.sources.digits import Digits


def test_sizes_and_types() -> None:
    data = Digits().load()
    assert (len(data.train), len(data.test)) == (1437, 360)
    assert data.image_shape == (3, 32, 32)
    assert data.classes == tuple("0123456789")


def test_at_its_own_size_the_values_are_those_of_scikit_learn() -> None:
    data = Digits(image_size=8).load()
    original = load_digits()
    expected = sorted(
        (int(label), np.rint(image * 255 / 16).astype(np.uint8).tobytes())
        for image, label in zip(original.images, original.target, strict=True)
    )
    found = sorted(
        (int(label), image[channel].numpy().tobytes())
        for rows in (data.train, data.test)
        for image, label in zip(rows.images, rows.labels, strict=True)
        for channel in (1,)
    )
    assert found == expected
    assert torch.equal(data.train.images[:, 0], data.train.images[:, 2])


def test_split_is_stratified_and_seeded() -> None:
    first, second, other = (Digits(image_size=8, split_seed=seed).load() for seed in (0, 0, 1))
    assert torch.equal(first.test.images, second.test.images)
    assert not torch.equal(first.test.images, other.test.images)
    counts = np.bincount(load_digits().target)
    assert np.abs(first.test.labels.bincount().numpy() - counts / 5).max() <= 1


@pytest.mark.parametrize("arguments", [{"split_seed": -1}, {"image_size": 100_000}])
def test_refuses(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Digits(**arguments)
