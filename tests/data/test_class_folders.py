import os
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fst_lightning.data.class_folders import ClassFolders, choose_classes, sort_classes


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@given(st.lists(st.integers(0, 10_000), unique=True))
def test_integers_sort_by_number(numbers: list[int]) -> None:
    assert sort_classes(str(n) for n in numbers) == [str(n) for n in sorted(numbers)]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["00010", "00002"], ["00002", "00010"]),
        (["b", "B", "a"], ["B", "a", "b"]),
        (["10", "9", "1a"], ["10", "1a", "9"]),
        (["1.5", "10", "2"], ["1.5", "10", "2"]),
        (["٣", "10", "2"], ["10", "2", "٣"]),
        (["1", "01", "0"], ["0", "01", "1"]),
    ],
)
def test_order(names: list[str], expected: list[str]) -> None:
    assert sort_classes(names) == expected


def test_lists_only_visible_images(tmp_path: Path) -> None:
    wanted = [touch(tmp_path / "a" / name) for name in ("1.JPG", "2.png", "sub/3.jpeg")]
    for name in ("Thumbs.db", ".hidden.png", "notes.txt", ".git/4.png", "png"):
        touch(tmp_path / "a" / name)
    assert ClassFolders(tmp_path).images(tmp_path / "a") == sorted(wanted)


def test_lists_visible_folders_in_order(tmp_path: Path) -> None:
    for name in ("b", "a", ".cache"):
        (tmp_path / name).mkdir()
    touch(tmp_path / "file.png")
    assert list(ClassFolders(tmp_path).folders(tmp_path)) == ["a", "b"]


def test_a_root_that_is_missing_or_a_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing is there.*data\.root"):
        ClassFolders(tmp_path / "gone")
    with pytest.raises(NotADirectoryError, match="it is a file"):
        ClassFolders(touch(tmp_path / "file"))


@pytest.mark.parametrize("of_folder", [True, False])
def test_links_out_of_the_root_are_refused(of_folder: bool, tmp_path: Path) -> None:
    outside = touch(tmp_path / "outside" / "secret.png")
    root = tmp_path / "root"
    link = root / "a" / "link.png"
    link.parent.mkdir(parents=True)
    link.symlink_to(outside.parent if of_folder else outside)
    with pytest.raises(ValueError, match=r"link\.png is a symbolic link out of.*secret|outside"):
        ClassFolders(root).images(root / "a")
    found = ClassFolders(root, follow_symlinks=True).images(root / "a")
    assert found == [link / "secret.png" if of_folder else link]


def test_a_class_folder_that_leads_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a").symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match=r"follow_symlinks=true"):
        ClassFolders(tmp_path / "root").folders(tmp_path / "root")


def test_links_that_stay_inside_are_fine_and_end(tmp_path: Path) -> None:
    image = touch(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "2.png").symlink_to(image)
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    found = ClassFolders(tmp_path).images(tmp_path / "a")
    assert set(found) >= {image, tmp_path / "a" / "2.png"}
    assert len(found) < 10


def test_a_root_that_is_a_link_is_the_users_choice(tmp_path: Path) -> None:
    touch(tmp_path / "real" / "a" / "1.png")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert len(ClassFolders(tmp_path / "link").images(tmp_path / "link" / "a")) == 1


def test_an_empty_class_is_named(tmp_path: Path) -> None:
    touch(tmp_path / "empty" / "notes.txt")
    with pytest.raises(ValueError, match=r"no image in the class folder .*empty"):
        ClassFolders(tmp_path).images(tmp_path / "empty")


def test_chosen_classes(tmp_path: Path) -> None:
    found = {name: tmp_path / name for name in ("10", "9", "8")}
    assert choose_classes(found, None, tmp_path) == ["8", "9", "10"]
    assert choose_classes(found, ["10", "8"], tmp_path) == ["10", "8"]
    with pytest.raises(ValueError, match=r"there is no \.\./x\. Found: 8, 9, 10"):
        choose_classes(found, ["8", "../x"], tmp_path)
    with pytest.raises(ValueError, match="once"):
        choose_classes(found, ["8", "8"], tmp_path)
    with pytest.raises(ValueError, match="at least 2 classes, but found 8"):
        choose_classes(found, ["8"], tmp_path)
    with pytest.raises(ValueError, match="at least 2 classes"):
        choose_classes({"a": tmp_path}, None, tmp_path)


def encoded(path: Path, kind: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (9, 99, 199)).save(path, format=kind)
    return path


def test_unusual_suffixes_are_told_by_content_and_the_rest_is_counted(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    wanted = [
        encoded(folder / name, kind)
        for name, kind in [("1.jfif", "JPEG"), ("2", "PNG"), ("3.jpe", "JPEG"), ("4.data", "GIF")]
    ]
    for name in ("notes.txt", "more.txt", "empty", "photo.avif", ".hidden"):
        touch(folder / name)
    os.mkfifo(folder / "pipe")
    folders = ClassFolders(tmp_path)
    assert folders.images(folder) == sorted(wanted)
    with pytest.warns(UserWarning, match=r"2 without a suffix, 2 \.txt, 1 \.avif\. By content"):
        folders.warn(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folders.warn(tmp_path)  # says it once


def test_files_with_usual_suffixes_are_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [encoded(tmp_path / "a" / f"{n}.png", "PNG") for n in range(3)]

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("fst_lightning.image_files.open_image", refuse)
    assert ClassFolders(tmp_path).images(tmp_path / "a") == files


def test_images_beside_the_class_folders_are_counted(tmp_path: Path) -> None:
    encoded(tmp_path / "a" / "1.png", "PNG")
    encoded(tmp_path / "2.png", "PNG")
    touch(tmp_path / "index.csv")
    with pytest.warns(UserWarning, match=r": 1 images beside the class folders"):
        ClassFolders(tmp_path).warn(tmp_path)


def test_a_link_out_is_refused_whatever_its_suffix(tmp_path: Path) -> None:
    outside = encoded(tmp_path / "outside", "PNG")
    (tmp_path / "root" / "a").mkdir(parents=True)
    (tmp_path / "root" / "a" / "x").symlink_to(outside)
    with pytest.raises(ValueError, match=r"a/x is a symbolic link out of"):
        ClassFolders(tmp_path / "root").images(tmp_path / "root" / "a")


def test_names_are_compared_in_nfc(tmp_path: Path) -> None:
    composed, decomposed = "Katz\u00e9", "Katze\u0301"
    (tmp_path / decomposed).mkdir()
    found = ClassFolders(tmp_path).folders(tmp_path)
    assert found == {composed: tmp_path / decomposed}
    assert choose_classes({**found, "x": tmp_path}, [decomposed, "x"], tmp_path) == [composed, "x"]
    (tmp_path / composed).mkdir()
    with pytest.raises(ValueError, match=r"two are called 'Katz\u00e9'.*Merge or rename"):
        ClassFolders(tmp_path).folders(tmp_path)
