"""The commit of the code, if it runs from a clone of its repository."""

from __future__ import annotations

import functools
import subprocess
from dataclasses import dataclass
from pathlib import Path

_SECONDS = 5.0


@dataclass(frozen=True)
class Commit:
    """The state of a clone.

    Attributes:
        commit: The full hash of the commit that is checked out; None if it is unknown.
        dirty: Whether tracked files differ from that commit; None if it is unknown.
    """

    commit: str | None = None
    dirty: bool | None = None


@functools.cache
def code_commit() -> Commit:
    """The commit of this package's code, as it was when this process asked first.

    An installed package has none, and neither has a clone on a machine without git.

    Example:
        >>> code_commit().commit is None or len(code_commit().commit) == 40
        True
    """
    return commit_of(Path(__file__).resolve().parents[1])


def commit_of(folder: Path) -> Commit:
    """The commit that is checked out in a folder; all unknown if the folder is no clone.

    A folder inside a clone, such as a virtual environment, is none itself.

    Args:
        folder: The top of a working tree.
    """
    if not (folder / ".git").exists():  # a folder, or the file of a linked working tree
        return Commit()
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if not commit:
        return Commit()
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return Commit(commit, None if changes is None else changes != "")


def _git(folder: Path, *arguments: str) -> str | None:
    """What a git command prints, without the end of the line; None if it fails."""
    # The monitor is a program that the clone's own settings may name.
    command = ["git", "-C", str(folder), "-c", "core.fsmonitor=false", *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=True, errors="replace"
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
