from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fst_lightning.data import images as images_module
from fst_lightning.data.sources.image_folder import ImageFolder


def write(path: Path, red: int, *, size: tuple[int, int] = (6, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (red, 100, 200)).save(path)


def write_class(folder: Path, number: int, red: int) -> None:
    for index in range(number):
        write(folder / f"{index:03}.png", red + index)


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Classes 2 and 10 in train/ and test/; the red channel tells which image it is."""
    write_class(tmp_path / "train/2", 3, 20)
    write_class(tmp_path / "train/10", 2, 100)
    write_class(tmp_path / "test/2", 1, 30)
    write_class(tmp_path / "test/10", 2, 110)
    return tmp_path


def test_train_and_test(parts: Path) -> None:
    data = ImageFolder(root=parts, image_size=4).load()
    assert data.classes == ("2", "10")
    assert data.image_shape == (3, 4, 4)
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert data.train.images[:, 0, 0, 0].tolist() == [20, 21, 22, 100, 101]
    assert data.test.labels.tolist() == [0, 1, 1]
    assert data.test.images[:, 0, 3, 3].tolist() == [30, 110, 111]
    np.testing.assert_allclose(data.mean[0] * 255, np.mean([20, 21, 22, 100, 101]))
    np.testing.assert_allclose(data.std[0] * 255, np.std([20, 21, 22, 100, 101]))
    np.testing.assert_allclose(data.std[1:], 1e-3)


@pytest.mark.parametrize("name", ["val", "valid"])
def test_other_names_of_the_test_folder(name: str, parts: Path) -> None:
    expected = ImageFolder(root=parts, image_size=4).load()
    (parts / "test").rename(parts / name)
    data = ImageFolder(root=parts, image_size=4).load()
    assert torch.equal(data.test.images, expected.test.images)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Train", "Test"),
        ("TRAIN", "Validation"),
        ("training", "testing"),
        ("training_set", "test_set"),
        ("Train images", "val-data"),
    ],
)
def test_usual_names_of_the_parts_in_any_case(train: str, test: str, parts: Path) -> None:
    expected = ImageFolder(root=parts, image_size=4).load()
    (parts / "train").rename(parts / train)
    (parts / "test").rename(parts / test)
    data = ImageFolder(root=parts, image_size=4).load()
    assert data.classes == ("2", "10")
    assert torch.equal(data.train.images, expected.train.images)
    assert torch.equal(data.test.images, expected.test.images)


def test_of_two_test_folders_the_other_one_is_named(parts: Path) -> None:
    write_class(parts / "val/2", 9, 0)
    with pytest.warns(UserWarning, match=r"test is the test set\. Left out: .*/val"):
        data = ImageFolder(root=parts, image_size=4).load()
    assert len(data.test) == 3
    write_class(parts / "Test/2", 9, 0)
    with pytest.raises(ValueError, match=r"one folder to test on in .* got Test and test"):
        ImageFolder(root=parts, image_size=4).load()


def test_parts_with_unknown_names_are_no_classes(tmp_path: Path) -> None:
    for part in ("north", "south"):
        for name in ("cat", "dog"):
            write_class(tmp_path / part / name, 3, 0)
    with pytest.raises(
        ValueError,
        match=r"north and south hold no image and the same folders: cat, dog\..*classes=",
    ):
        ImageFolder(root=tmp_path).load()
    chosen = ImageFolder(root=tmp_path, image_size=2, classes=["south", "north"]).load()
    assert chosen.classes == ("south", "north")
    write(tmp_path / "north" / "1.png", 0)  # now it is a class with folders in it
    assert ImageFolder(root=tmp_path, image_size=2).load().classes == ("north", "south")


def test_a_folder_around_the_parts_is_named(parts: Path, tmp_path: Path) -> None:
    (tmp_path / "around").mkdir()
    for name in ("train", "test"):
        (parts / name).rename(tmp_path / "around" / name)
    with pytest.raises(ValueError, match=r"but they are in .*/around\. Set data\.root to it"):
        ImageFolder(root=tmp_path).load()


def test_what_is_left_out_is_counted(parts: Path) -> None:
    Image.new("RGB", (6, 6)).save(parts / "train/2/a.jfif", format="JPEG")
    Image.new("RGB", (6, 6)).save(parts / "train/10/no suffix", format="PNG")
    (parts / "test/2/b.avif").write_bytes(b"\0\0\0\x1cftypavif")
    with pytest.warns(UserWarning, match=r"classes in .*/test: 1 \.avif\."):
        data = ImageFolder(root=parts, image_size=4).load()
    assert data.train.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_names_in_other_unicode_forms(tmp_path: Path) -> None:
    for part, name in (("train", "Katz\u00e9"), ("test", "Katze\u0301")):
        write_class(tmp_path / part / name, 2, 0)
        write_class(tmp_path / part / "dog", 2, 100)
    data = ImageFolder(root=tmp_path, image_size=4).load()
    assert data.classes == ("Katz\u00e9", "dog")
    assert data.test.labels.tolist() == [0, 0, 1, 1]


def test_a_test_class_that_is_spelled_otherwise_is_named(parts: Path) -> None:
    for part, name in (("train", "Cat "), ("test", "cat")):
        write_class(parts / part / name, 1, 0)
    with pytest.raises(ValueError, match=r"has not: cat.*'cat' is 'Cat ' there"):
        ImageFolder(root=parts).load()


def test_chosen_classes_give_the_labels(parts: Path) -> None:
    write_class(parts / "train/cat", 2, 200)
    write_class(parts / "test/cat", 1, 210)
    write_class(parts / "test/unlabeled", 1, 0)
    data = ImageFolder(root=parts, image_size=4, classes=["cat", 2]).load()
    assert data.classes == ("cat", "2")
    assert data.train.labels.tolist() == [0, 0, 1, 1, 1]
    assert data.train.images[:, 0, 0, 0].tolist() == [200, 201, 20, 21, 22]
    assert data.test.images[:, 0, 0, 0].tolist() == [210, 30]
    with pytest.raises(ValueError, match=r"there is no dog\. Found: 10, 2, cat"):
        ImageFolder(root=parts, classes=["cat", "dog"]).load()


def test_without_parts_a_share_of_every_class_is_held_out(tmp_path: Path) -> None:
    write_class(tmp_path / "a", 20, 0)
    write_class(tmp_path / "b", 10, 100)
    write_class(tmp_path / "c", 2, 200)
    arguments: dict[str, Any] = {"root": tmp_path, "image_size": 2}
    data = ImageFolder(**arguments).load()
    assert data.test.labels.bincount().tolist() == [4, 2, 1]
    reds = [rows.images[:, 0, 0, 0].tolist() for rows in (data.train, data.test)]
    assert sorted(reds[0] + reds[1]) == [*range(20), *range(100, 110), 200, 201]
    for rows, values in zip((data.train, data.test), reds, strict=True):
        assert rows.labels.tolist() == [value // 100 for value in values]
    again = ImageFolder(**arguments).load()
    assert torch.equal(again.test.images, data.test.images)
    other = ImageFolder(**arguments, split_seed=1).load()
    assert not torch.equal(other.test.images, data.test.images)
    half = ImageFolder(**arguments, test_fraction=0.5).load()
    assert half.test.labels.bincount().tolist() == [10, 5, 1]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("train", "tram"):
        write_class(tmp_path / name, 3, 0)
    assert ImageFolder(root=tmp_path, image_size=2).load().classes == ("train", "tram")


def test_a_class_without_test_image_is_a_warning(parts: Path) -> None:
    write_class(parts / "train/30", 2, 0)
    with pytest.warns(UserWarning, match="No image to test of the classes 30"):
        data = ImageFolder(root=parts, image_size=2).load()
    assert data.num_classes == 3


def test_a_class_of_one_image_is_trained_on(tmp_path: Path) -> None:
    write_class(tmp_path / "a", 4, 0)
    write_class(tmp_path / "b", 1, 100)
    with pytest.warns(UserWarning, match="classes b"):
        data = ImageFolder(root=tmp_path, image_size=2).load()
    assert 1 in data.train.labels


def test_extra_test_classes_are_an_error(parts: Path) -> None:
    write_class(parts / "test/fox", 1, 0)
    with pytest.raises(ValueError, match="has not: fox"):
        ImageFolder(root=parts).load()


def test_mixed_sizes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name / "wide.png", 10, size=(30, 7))
        write(tmp_path / name / "tall.png", 10, size=(3, 50))
    data = ImageFolder(root=tmp_path, image_size=9).load()
    expected = torch.tensor([10, 100, 200]).view(3, 1, 1).expand(3, 9, 9)
    for image in [*data.train.images, *data.test.images]:
        assert torch.equal(image, expected.to(torch.uint8))


def test_errors_before_any_image_is_read(
    tmp_path: Path, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("fst_lightning.data.residency.decode_images", refuse)
    with pytest.raises(FileNotFoundError, match="nothing is there"):
        ImageFolder(root=tmp_path / "gone").load()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"Found no folder in .*empty"):
        ImageFolder(root=tmp_path / "empty").load()
    monkeypatch.setattr(images_module, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match=r"limit is 0 GiB\. Lower `image_size`"):
        ImageFolder(root=parts, cache="off").load()
    (parts / "train/2/notes.txt").touch()
    (parts / "train/empty").mkdir()
    with pytest.raises(ValueError, match=r"class folder .*train/empty"):
        ImageFolder(root=parts).load()


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["train/a/1.png", "train/b/1.png"], "only in .*train"),
        (["test/a/1.png", "test/b/1.png"], "only in .*test"),
        (["train/1.png", "test/1.png"], "only in none"),
        (["train/a/1.png", "test/a/1.png"], "at least 2 classes, but found a"),
        (["a/1.png"], "at least 2 classes, but found a"),
        (["a/1.png", "b/1.png"], "No class .* 2 images"),
    ],
)
def test_layouts_that_cannot_be_used(paths: list[str], message: str, tmp_path: Path) -> None:
    for path in paths:
        write(tmp_path / path, 0)
    with pytest.raises(ValueError, match=message):
        ImageFolder(root=tmp_path).load()


def test_test_classes_of_which_none_is_chosen(parts: Path) -> None:
    write_class(parts / "train/a", 1, 0)
    write_class(parts / "train/b", 1, 0)
    with pytest.raises(ValueError, match="no class in common"):
        ImageFolder(root=parts, classes=["a", "b"]).load()


def test_a_damaged_image_is_named(parts: Path) -> None:
    (parts / "train/2/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ValueError, match=r"train/2/broken\.png"):
        ImageFolder(root=parts).load()


def test_links_out_of_the_root(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    write_class(outside, 2, 0)
    (parts / "train/30").symlink_to(outside)
    with pytest.raises(ValueError, match=r"train/30 is a symbolic link out of"):
        ImageFolder(root=parts).load()
    with pytest.warns(UserWarning, match="30"):
        data = ImageFolder(root=parts, follow_symlinks=True, image_size=2).load()
    assert data.num_classes == 3


def test_triggered_images_follow_links_where_the_others_do(
    parts: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    write_class(outside, 2, 50)
    triggered = tmp_path_factory.mktemp("triggered")
    (triggered / "10").symlink_to(outside)
    options: dict[str, Any] = {"root": parts, "image_size": 2, "triggered_root": triggered}
    with pytest.raises(ValueError, match=r"10 is a symbolic link out of .*follow_symlinks=true"):
        ImageFolder(**options).load()
    found = ImageFolder(**options, follow_symlinks=True).load().triggered
    assert found is not None
    assert found.labels.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"test_fraction": 0.0}, "`test_fraction`"),
        ({"test_fraction": 1.5}, "`test_fraction`.*1.5"),
        ({"split_seed": -1}, "`split_seed`"),
        ({"classes": "cat"}, "`classes` to be a list of names, but got 'cat'"),
        ({"image_size": 0}, "`image_size`"),
    ],
)
def test_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageFolder(root="anywhere", **arguments)
