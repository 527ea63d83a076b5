from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
