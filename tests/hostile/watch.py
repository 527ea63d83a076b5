"""Sees, and stops, everything by which a file that is read could act on the machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_ACTS = (
    *(
        "os.system",
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.posix_spawn",
        "os.spawn",
        "os.startfile",
    ),
    *("subprocess.Popen", "pty.spawn", "socket.connect", "socket.bind", "ctypes.dlopen"),
    *("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.chmod"),
    *("shutil.rmtree", "shutil.copyfile", "shutil.move", "pickle.find_class", "sqlite3.connect"),
    *("urllib.Request", "webbrowser.open"),
)
_seen: list[str] | None = None
_installed = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is None:
        return
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & 3 != os.O_RDONLY
    if writes or event in _ACTS:
        _seen.append(f"{event} {arguments!r:.200}")
        raise PermissionError(f"{event} is not what reading a file needs")


@contextmanager
def watched() -> Iterator[list[str]]:
    """Stop programs, network, and every change of the disk; yields what was tried.

    Python tells of them itself (``sys.addaudithook``), however they were called.
    """
    global _seen, _installed
    if not _installed:
        sys.addaudithook(_hook)
        _installed = True
    tried: list[str] = []
    _seen = tried
    try:
        yield tried
    finally:
        _seen = None
