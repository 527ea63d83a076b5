"""The commit of the code is that of a clone, and no run fails for the want of one."""

import subprocess
from pathlib import Path

import pytest

from fst_lightning.commit import Commit, commit_of


def git(folder: Path, *arguments: str) -> str:
    settings = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(folder), *settings, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    folder = tmp_path / "a clone"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "code.py").write_text("1\n", encoding="utf-8")
    git(folder, "add", "code.py")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def test_a_clone_says_its_commit_and_whether_code_was_edited(clone: Path) -> None:
    head = git(clone, "rev-parse", "HEAD")
    assert commit_of(clone) == Commit(head, dirty=False)
    (clone / "outputs.txt").write_text("not tracked\n", encoding="utf-8")
    assert commit_of(clone) == Commit(head, dirty=False)
    (clone / "code.py").write_text("2\n", encoding="utf-8")
    assert commit_of(clone) == Commit(head, dirty=True)


def test_a_linked_working_tree_is_a_clone(clone: Path, tmp_path: Path) -> None:
    git(clone, "worktree", "add", "-q", str(tmp_path / "linked"))
    assert commit_of(tmp_path / "linked").commit == git(clone, "rev-parse", "HEAD")


def test_a_folder_inside_a_clone_is_none(clone: Path) -> None:
    (clone / "site-packages").mkdir()
    assert commit_of(clone / "site-packages") == Commit()


def test_nothing_is_known_without_git(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert commit_of(clone) == Commit()


@pytest.mark.parametrize("content", ["", "gitdir: /nowhere\n"])
def test_nothing_is_known_of_a_broken_clone(content: str, tmp_path: Path) -> None:
    (tmp_path / ".git").write_text(content, encoding="utf-8")
    assert commit_of(tmp_path) == Commit()


def test_nothing_is_known_of_a_clone_without_a_commit(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    assert commit_of(tmp_path) == Commit()


def test_a_git_that_hangs_is_not_waited_for(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], **options: float) -> None:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr("subprocess.run", hang)
    assert commit_of(clone) == Commit()
