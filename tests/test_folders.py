from pathlib import Path

import pytest

from fst_lightning.attacks import AdaptivePatch, Refool
from fst_lightning.data.class_folders import ClassFolders
from fst_lightning.data.sources.triggered import read_triggered
from fst_lightning.folders import entries_inside


def names(root: Path, directory: Path, *, follow_symlinks: bool = False) -> list[str]:
    found = entries_inside(root, directory, follow_symlinks=follow_symlinks)
    return [entry.name for entry in found]


def test_lists_visible_entries_by_name(tmp_path: Path) -> None:
    for name in ("b", "a", ".hidden", "C"):
        (tmp_path / name).touch()
    assert names(tmp_path, tmp_path) == ["C", "a", "b"]


@pytest.mark.parametrize("target", ["outside/a.png", "root2/a.png", "root/../a.png", "."])
def test_links_that_lead_out_are_refused(target: str, tmp_path: Path) -> None:
    """`root2` begins like `root` and is another folder."""
    for folder in ("root/sub", "root2", "outside"):
        (tmp_path / folder).mkdir(parents=True)
    link = tmp_path / "root/sub/link.png"
    link.symlink_to(tmp_path / target)
    with pytest.raises(ValueError, match=r"link\.png is a symbolic link out of .*root, to"):
        names(tmp_path / "root", link.parent)
    assert names(tmp_path / "root", link.parent, follow_symlinks=True) == ["link.png"]


def test_links_that_stay_inside_are_fine(tmp_path: Path) -> None:
    (tmp_path / "root/sub").mkdir(parents=True)
    (tmp_path / "root/sub/up").symlink_to("..")
    (tmp_path / "link").symlink_to("root")  # the root itself is the user's choice
    assert names(tmp_path / "link", tmp_path / "link/sub") == ["up"]


def test_a_folder_that_cannot_be_listed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Could not list .*\\x1b\[2J.*Delete or repair"):
        names(tmp_path, tmp_path / "\x1b[2J")


def test_one_rule_for_all_folders(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "0").mkdir(parents=True)
    for place in (root / "0/a.png", root / "a.png"):
        place.symlink_to("/etc/hostname")
    for read in (
        lambda: ClassFolders(root).images(root / "0"),
        lambda: read_triggered(root, ("cat", "dog"), 8),
        lambda: Refool(folder=str(root)),
        lambda: AdaptivePatch(folder=str(root)),
    ):
        with pytest.raises(ValueError, match="is a symbolic link out of"):
            read()
