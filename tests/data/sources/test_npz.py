from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fst_lightning.data import archive
from fst_lightning.data.resize import resize_images
from fst_lightning.data.sources.npz import Npz

Arrays = dict[str, npt.NDArray[Any]]


def draw(number: int, *shape: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(number).integers(0, 256, (number, *shape), dtype=np.uint8)


def arrays(**changes: npt.ArrayLike) -> Arrays:
    values: dict[str, npt.ArrayLike] = {
        "x_train": draw(6, 8, 8, 3),
        "y_train": [0, 1, 2, 0, 1, 2],
        "x_test": draw(4, 8, 8, 3),
        "y_test": [2, 1, 0, 0],
    }
    return {name: np.asarray(value) for name, value in (values | changes).items()}


def save(folder: Path, values: Arrays) -> Path:
    path = folder / "data.npz"
    np.savez(path, allow_pickle=False, **values)
    return path


def test_channels_last(tmp_path: Path) -> None:
    values = arrays()
    data = Npz(root=save(tmp_path, values)).load()
    assert data.classes == ("0", "1", "2")
    assert data.image_shape == (3, 8, 8)
    assert data.train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    for part, rows in (("x_train", data.train), ("x_test", data.test)):
        for image, expected in zip(rows.images, values[part], strict=True):
            for channel in range(3):
                assert np.array_equal(image[channel].numpy(), expected[:, :, channel])
    np.testing.assert_allclose(data.mean, values["x_train"].mean(axis=(0, 1, 2)) / 255)


@pytest.mark.parametrize("axis", [None, 1, 3])
def test_gray_is_repeated(axis: int | None, tmp_path: Path) -> None:
    gray = {"x_train": draw(6, 8, 8), "x_test": draw(4, 8, 8)}
    saved = gray if axis is None else {k: np.expand_dims(v, axis) for k, v in gray.items()}
    data = Npz(root=save(tmp_path, arrays(**saved))).load()
    for channel in range(3):
        assert np.array_equal(data.test.images[:, channel].numpy(), gray["x_test"])


def test_channels_first(tmp_path: Path) -> None:
    values = arrays(x_train=draw(6, 3, 8, 8), x_test=draw(4, 3, 8, 8))
    data = Npz(root=save(tmp_path, values)).load()
    assert np.array_equal(data.train.images.numpy(), values["x_train"])


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8"])
def test_floats_are_rounded(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_VALUES_AT_A_TIME", 100)
    values = arrays()
    floats = {name: (values[name] / 255).astype(dtype) for name in ("x_train", "x_test")}
    data = Npz(root=save(tmp_path, arrays(**floats))).load()
    expected = Npz(root=save(tmp_path, values)).load()
    assert torch.equal(data.train.images, expected.train.images)


def test_resizes_where_asked(tmp_path: Path) -> None:
    path = save(tmp_path, arrays())
    native, larger = Npz(root=path).load(), Npz(root=path, image_size=12).load()
    assert torch.equal(larger.train.images, resize_images(native.train.images, 12))
    wide = save(tmp_path, arrays(x_train=draw(6, 8, 10, 3), x_test=draw(4, 8, 10, 3)))
    assert Npz(root=wide, image_size=8).load().image_shape == (3, 8, 8)
    with pytest.raises(ValueError, match=r"`x_train`.*8x10.*data\.image_size"):
        Npz(root=wide).load()


@pytest.mark.parametrize("dtype", ["uint8", "int32", ">i8", "uint64"])
def test_labels_of_any_integer_and_in_a_column(dtype: str, tmp_path: Path) -> None:
    labels = np.array([[0], [1], [2], [0], [1], [2]], dtype=dtype)
    data = Npz(root=save(tmp_path, arrays(y_train=labels))).load()
    assert data.train.labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_named_classes_may_lack_images(tmp_path: Path) -> None:
    path = save(tmp_path, arrays(y_train=[0, 3, 0, 3, 0, 3], y_test=[0, 3, 0, 0]))
    assert Npz(root=path, classes=["a", "b", "c", 4]).load().classes == ("a", "b", "c", "4")
    with pytest.raises(ValueError, match=r"each label from 0 to .* 3.*data\.classes"):
        Npz(root=path).load()
    with pytest.raises(ValueError, match=r"\[0, 2\), but `y_train` has labels from 0 to 3"):
        Npz(root=path, classes=["a", "b"]).load()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_train": [0, 1, -1, 0, 1, 2]}, "`y_train` has labels from -1 to 2"),
        ({"y_test": [0, 1, 3, 0]}, r"\[0, 3\), but `y_test` has labels from 0 to 3"),
        ({"y_train": [0, 1, 2, 0, 1, 2**60]}, "each label from 0"),
        ({"y_train": np.array([0, 1, 2, 0, 1, 2**64 - 1], np.uint64)}, "18446744073709551615"),
        ({"y_train": [0.0, 1, 2, 0, 1, 2]}, "`y_train` to be integers.*float64"),
        ({"y_train": ["a", "b", "c", "a", "b", "c"]}, "`y_train` to be integers"),
        ({"y_train": np.eye(6, dtype=np.int64)}, r"shape \(N,\).*\(6, 6\)"),
        ({"y_train": np.zeros(0, np.int64)}, "`y_train` to be integers"),
        ({"y_train": [0, 1, 2]}, "6 images and 3 labels"),
        ({"y_train": [0] * 6, "y_test": [0] * 4}, "at least 2 classes"),
        ({"x_train": draw(6, 8, 8, 4)}, r"`x_train` of shape.*\(6, 8, 8, 4\)"),
        ({"x_train": draw(6, 64)}, r"`x_train` of shape.*\(6, 64\)"),
        ({"x_train": np.zeros((6, 0, 0, 3), np.uint8)}, "`x_train` of shape"),
        ({"x_train": np.zeros((6, 8, 8, 3), np.int64)}, "`x_train` to be uint8.*int64"),
        ({"x_train": np.zeros((6, 8, 8, 3), np.bool_)}, "`x_train` to be uint8.*bool"),
        ({"x_train": np.full((6, 8, 8, 3), 255.0)}, r"in \[0, 1\], but got .* 255.*Divide"),
        ({"x_train": np.full((6, 8, 8, 3), np.nan)}, r"in \[0, 1\], but got .*nan"),
        ({"x_train": np.full((6, 8, 8, 3), -0.5)}, r"in \[0, 1\], but got values from -0.5"),
        ({"x_test": draw(4, 9, 9, 3)}, "one shape"),
    ],
)
def test_refuses_content(changes: dict[str, npt.ArrayLike], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Npz(root=save(tmp_path, arrays(**changes))).load()


def test_refuses_a_missing_array(tmp_path: Path) -> None:
    values = arrays()
    values["images"] = values.pop("x_test")
    with pytest.raises(ValueError, match=r"no array x_test.*found .*images"):
        Npz(root=save(tmp_path, values)).load()


def test_refuses_too_large_a_size(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Lower `image_size`"):
        Npz(root=save(tmp_path, arrays()), image_size=100_000).load()


def test_refuses_one_name_for_classes() -> None:
    with pytest.raises(ValueError, match="list of names, but got 'cat'"):
        Npz(root="anywhere", classes="cat")
