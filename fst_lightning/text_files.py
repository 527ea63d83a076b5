"""Reads text files that anybody may have written: regular ones, of a bounded length."""

from __future__ import annotations

import errno
import io
import os
from typing import TextIO

from fst_lightning.regular_files import length, open_regular

MOST_BYTES = 10_000_000
"""Longest text file: JSON takes some twenty times as much memory as its text."""


def open_text(
    path: str | os.PathLike[str], most: int = MOST_BYTES, newline: str | None = None
) -> TextIO:
    """Open a UTF-8 file; a pipe does not block, and a device is not read.

    Args:
        path: The file, or a link to one.
        most: Bytes that it may have.
        newline: As `open` takes it.

    Raises:
        OSError: If there is no such file, it is no regular file, or it is longer.
    """
    file = open_regular(path)
    size = length(file)
    if size > most:
        file.close()
        found = f"it has {size:,} bytes, and {most:,} are the limit"
        raise OSError(errno.EINVAL, found, os.fspath(path))
    return io.TextIOWrapper(file, encoding="utf-8", newline=newline)


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
