"""Locks between processes: the operating system's, or none."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import IO

from filelock import FileLock

try:
    import fcntl
except ImportError:  # Windows: filelock has other means there, and open files guard themselves
    fcntl = None  # type: ignore[assignment]

__all__ = ["NoLocksError", "file_lock", "lock_open_file"]


class NoLocksError(OSError):
    """The file system has no locks; the message names the folder and the system's reason."""


def file_lock(path: Path) -> FileLock:
    """Return a lock that one process holds at a time, and that is gone with its process.

    Where there are no locks, releases of filelock either ask for ever, or take a file that is
    there for a lock that is held, which a killed process leaves behind. So a file without a name
    is locked first, which nobody else waits for.

    Args:
        path: The lock's file, in a folder that exists.

    Raises:
        NoLocksError: If the file system has no locks.
        OSError: If the folder cannot be written.
    """
    with tempfile.TemporaryFile(dir=path.parent) as file:
        try:
            lock_open_file(file, shared=False)
        except OSError as error:
            raise NoLocksError(
                f"There are no file locks on the file system of {path.parent} ({error.strerror})."
            ) from None
    return FileLock(path)


def lock_open_file(file: IO[bytes], *, shared: bool) -> None:
    """Lock an open file until it is closed: alone at once or not at all, or shared.

    Raises:
        BlockingIOError: If it is to be locked alone, and somebody has locked it.
        OSError: If the file system has no locks.
    """
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX | fcntl.LOCK_NB)
