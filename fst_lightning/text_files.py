"""Reads text files that anybody may have written: regular ones, of a bounded length."""

from __future__ import annotations

import errno
import os
import stat
from typing import TextIO

MOST_BYTES = 10_000_000
"""Longest text file: JSON takes some twenty times as much memory as its text."""


def open_text(
    path: str | os.PathLike[str], most: int = MOST_BYTES, newline: str | None = None
) -> TextIO:
    """Open a UTF-8 file; a pipe does not block, and a device is not read.

    Args:
        path: the file, or a link to one.
        most: bytes that it may have.
        newline: as `open` takes it.

    Raises:
        OSError: If there is no such file, it is no regular file, or it is longer.
    """
    # The checks are of the opened file: one that is looked at first may be another one by then.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", os.fspath(path))
        if status.st_size > most:
            found = f"it has {status.st_size:,} bytes, and {most:,} are the limit"
            raise OSError(errno.EINVAL, found, os.fspath(path))
        return os.fdopen(descriptor, encoding="utf-8", newline=newline)
    except BaseException:
        os.close(descriptor)
        raise


def read_text(path: str | os.PathLike[str], most: int = MOST_BYTES) -> str:
    """Read a UTF-8 file whole; see `open_text`.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder) / "a.json"
        ...     _ = file.write_text("[1]")
        ...     read_text(file)
        '[1]'

    Raises:
        OSError: If there is no such file, it is no regular file, or it is longer.
        UnicodeDecodeError: If it is no UTF-8.
    """
    with open_text(path, most) as file:
        text = file.read(most + 1)
    if len(text) > most:  # It has grown since.
        raise OSError(errno.EINVAL, f"more than {most:,} bytes are too many", os.fspath(path))
    return text
