import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fst_lightning.data import images as images_module
from fst_lightning.data.images import ImageData, ImageSet, channel_statistics, check_memory


def pixels(number: int, size: int = 4) -> Tensor:
    return torch.randint(
        256, (number, 3, size, size), generator=torch.Generator().manual_seed(0)
    ).to(torch.uint8)


def image_set(*labels: int, size: int = 4) -> ImageSet:
    return ImageSet(pixels(len(labels), size), torch.tensor(labels, dtype=torch.int64))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64), "uint8"),
        (pixels(2)[:, :2], torch.zeros(2, dtype=torch.int64), r"\(N, 3, H, W\)"),
        (pixels(2)[0], torch.zeros(3, dtype=torch.int64), r"\(N, 3, H, W\)"),
        (pixels(2), torch.zeros(2), "int64"),
        (pixels(2), torch.zeros(2, 1, dtype=torch.int64), r"\(N,\)"),
        (pixels(2), torch.zeros(3, dtype=torch.int64), "2 images and 3 labels"),
        (pixels(2), torch.tensor([0, -1]), "at least 0, but got -1"),
    ],
)
def test_image_set_refuses(images: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageSet(images, labels)


def test_subset_takes_rows_in_the_given_order() -> None:
    rows = image_set(0, 1, 2, 3)
    chosen = rows.subset([3, 0, 3])
    assert chosen.labels.tolist() == [3, 0, 3]
    for got, row in zip(chosen.images, [3, 0, 3], strict=True):
        assert torch.equal(got, rows.images[row])
    assert len(rows.subset(torch.tensor([], dtype=torch.int64))) == 0


@pytest.mark.parametrize("indices", [[4], [-1], [0, 9]])
def test_subset_refuses_rows_that_do_not_exist(indices: list[int]) -> None:
    with pytest.raises(IndexError, match=r"\[0, 4\)"):
        image_set(0, 1, 2, 3).subset(indices)


def test_subset_copies() -> None:
    rows = image_set(0, 1)
    before = rows.images.clone()
    rows.subset([0, 1]).images.zero_()
    assert torch.equal(rows.images, before)


def test_image_data_describes_itself() -> None:
    data = ImageData(image_set(0, 1), image_set(2), ("a", "b", "c"), (0.5,) * 3, (0.2,) * 3)
    assert data.num_classes == 3
    assert data.image_shape == (3, 4, 4)


@pytest.mark.parametrize(
    ("train", "test", "classes", "mean", "std", "message"),
    [
        (image_set(0, 2), image_set(0), "ab", (0.5,) * 3, (0.2,) * 3, "training labels below.*2"),
        (image_set(0, 1), image_set(5), "ab", (0.5,) * 3, (0.2,) * 3, "test labels below.*5"),
        (image_set(), image_set(0), "ab", (0.5,) * 3, (0.2,) * 3, "one training image"),
        (image_set(0), image_set(), "ab", (0.5,) * 3, (0.2,) * 3, "one test image"),
        (image_set(0), image_set(0), "a", (0.5,) * 3, (0.2,) * 3, "at least 2 classes"),
        (image_set(0), image_set(0), "aa", (0.5,) * 3, (0.2,) * 3, "differ"),
        (image_set(0), image_set(0, size=5), "ab", (0.5,) * 3, (0.2,) * 3, "one shape"),
        (image_set(0), image_set(0), "ab", (0.5,), (0.2,) * 3, "`mean` to be 3 finite"),
        (image_set(0), image_set(0), "ab", (float("nan"),) * 3, (0.2,) * 3, "`mean`"),
        (image_set(0), image_set(0), "ab", (0.5,) * 3, (0.2, 0.0, 0.2), "`std` to be 3 positive"),
    ],
)
def test_image_data_refuses(
    train: ImageSet,
    test: ImageSet,
    classes: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        ImageData(train, test, tuple(classes), mean, std)


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**31))
def test_channel_statistics_are_those_of_numpy(number: int, size: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 256, (number, 3, size, size), dtype=np.uint8)
    mean, std = channel_statistics(torch.from_numpy(values))
    scaled = values.astype(np.float64) / 255
    np.testing.assert_allclose(mean, scaled.mean(axis=(0, 2, 3)), atol=1e-12)
    np.testing.assert_allclose(std, np.maximum(scaled.std(axis=(0, 2, 3)), 1e-3), atol=1e-7)


def test_channel_statistics_over_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = channel_statistics(pixels(7))
    monkeypatch.setattr(images_module, "_CHUNK", 2)
    assert channel_statistics(pixels(7)) == whole


def test_memory_is_bounded() -> None:
    check_memory(60_000, 224)
    with pytest.raises(ValueError, match=r"1,300,000 images.*GiB.*Lower `image_size`"):
        check_memory(1_300_000, 224)
