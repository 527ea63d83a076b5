from typing import Any

import pytest
import torch
from torch import nn

from fst_lightning.data.sources import fake
from fst_lightning.data.sources.fake import Fake


def test_sizes_and_balance() -> None:
    data = Fake(num_classes=7, num_train=50, num_test=20, image_size=9).load()
    assert data.image_shape == (3, 9, 9)
    assert data.num_classes == 7
    for rows, number in ((data.train, 50), (data.test, 20)):
        counts = rows.labels.bincount(minlength=7)
        assert len(rows) == number
        assert int(counts.max() - counts.min()) <= 1


def test_same_seed_same_images() -> None:
    first, second, other = (Fake(num_train=20, num_test=10, seed=s).load() for s in (3, 3, 4))
    assert torch.equal(first.train.images, second.train.images)
    assert torch.equal(first.test.labels, second.test.labels)
    assert not torch.equal(first.train.images, other.train.images)


def test_no_test_image_is_a_training_image() -> None:
    data = Fake(num_train=30, num_test=30, image_size=8).load()
    seen = {image.numpy().tobytes() for image in data.train.images}
    assert not any(image.numpy().tobytes() in seen for image in data.test.images)


@pytest.mark.parametrize("num_classes", [2, 10, 43])
def test_nearest_mean_tells_the_classes_apart(num_classes: int) -> None:
    data = Fake(num_classes=num_classes, image_size=16).load()
    train, test = (rows.images.flatten(1).float() for rows in (data.train, data.test))
    means = torch.stack([train[data.train.labels == k].mean(0) for k in range(num_classes)])
    predicted = torch.cdist(test, means).argmin(1)
    assert (predicted == data.test.labels).float().mean() > 0.95


def test_a_small_network_learns_it() -> None:
    torch.manual_seed(0)
    data = Fake().load()
    net = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(392, 10)
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(5):
        for rows in torch.randperm(512).view(8, 64):
            loss = nn.functional.cross_entropy(
                net(data.train.images[rows].float() / 255), data.train.labels[rows]
            )
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    net.eval()
    predicted = net(data.test.images.float() / 255).argmax(1)
    assert (predicted == data.test.labels).float().mean() > 0.95


def test_chunks_only_bound_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake, "_CHUNK", 8)
    data = Fake(num_train=20, num_test=4, image_size=4).load()
    assert data.train.images.float().std(dim=(1, 2, 3)).min() > 0


@pytest.mark.parametrize(
    "arguments",
    [{"num_classes": 1}, {"num_train": 0}, {"num_test": 0}, {"seed": -1}, {"image_size": 10**6}],
)
def test_refuses(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Fake(**arguments)
