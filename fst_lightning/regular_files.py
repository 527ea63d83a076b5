"""Opens files that anybody may have written, and may replace while they are read."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, BinaryIO


class NotRegularError(OSError):
    """A pipe, a device, a socket or a folder lies where a file should."""


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a regular file to read its bytes; a pipe does not block, and a device is not read.

    The opened file is checked, not the name: another file may take the name at any time. Callers
    open a file once, and ask `length` for its size.

    Args:
        path: the file, or a link to one.

    Raises:
        NotRegularError: If it is no regular file.
        OSError: If there is no such file, or it may not be read.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise _not_regular(path) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_regular(path)
    return os.fdopen(descriptor, "rb")


def length(file: IO[Any]) -> int:
    """Return how many bytes an open file has."""
    return os.fstat(file.fileno()).st_size


def _not_regular(path: str | os.PathLike[str]) -> NotRegularError:
    return NotRegularError(errno.EINVAL, "it is no regular file", os.fspath(path))


def name_of_open(file: BinaryIO) -> str:
    """Return a name for an open file, because another file may have taken its own name by now.

    Libraries that get a name may do more than with an open file: Pillow rotates TIFF images.
    """
    name = f"/dev/fd/{file.fileno()}"
    return name if Path(name).exists() else str(file.name)
