"""Removes entries from a store."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from fst_lightning.checkpoints.store.entry import FACTS_FILE, KEY_FORMAT, checked_key
from fst_lightning.checkpoints.store.folders import StoreFolders, subfolders
from fst_lightning.locks import lock_open_file

IN_USE_FILE = "in_use.lock"
"""The file of a work folder that a process holds while it uses the folder."""

_DAY = 86_400.0


def prune(
    folders: StoreFolders,
    keep_bytes: float | None = None,
    older_than_days: float | None = None,
    keys: Collection[str] | None = None,
    stale: bool = False,
) -> list[str]:
    """Remove entries, and what dead processes left half-written; see :meth:`Store.prune`."""
    check_limit("keep_bytes", keep_bytes)
    check_limit("older_than_days", older_than_days)
    now = time.time()
    age_from(folders, now)
    entries = folders.entries()
    named = {checked_key(key) for key in keys or ()}
    doomed = {entry.key for entry in entries if entry.key in named or (stale and entry.stale)}
    if older_than_days is not None:
        oldest = now - older_than_days * _DAY
        doomed |= {entry.key for entry in entries if entry.created.timestamp() < oldest}
        named |= {f.name for f in subfolders(folders.work) if _newest(f) < oldest}
    _remove_partial(folders)
    removed = [
        entry.key
        for entry in entries
        if entry.key in doomed and _remove(folders, folders.models / entry.key)
    ]
    if keep_bytes is not None:
        rest = [entry for entry in entries if entry.key not in removed]
        total = sum(entry.bytes for entry in rest)
        for entry in sorted(rest, key=lambda entry: (entry.used, entry.key)):
            if total > keep_bytes and _remove(folders, folders.models / entry.key):
                total -= entry.bytes
                removed.append(entry.key)
    for key in sorted(named):
        _remove(folders, folders.work / key)
    return removed


def age_from(folders: StoreFolders, now: float) -> None:
    """Let entries that were used by a clock ahead of this one age from now on, in their order.

    Otherwise they would stay until this clock has caught up, and newer ones would go first.

    Args:
        folders: Of the store.
        now: Seconds since the epoch.
    """
    ahead = []
    for folder in subfolders(folders.models):
        with contextlib.suppress(OSError):
            facts = folder / FACTS_FILE
            if (used := facts.stat().st_mtime) > now:
                ahead.append((used, facts))
    for place, (_, facts) in enumerate(sorted(ahead, reverse=True)):
        # Before this second: the time of a file that is made now may be some milliseconds late.
        used = now - 1 - place / 1000
        with contextlib.suppress(OSError):  # removed meanwhile, or read only
            os.utime(facts, (used, used))


def check_limit(name: str, number: float | None) -> float | None:
    """Return the number.

    Raises:
        ValueError: If it is not 0 or more.
    """
    if number is not None and not number >= 0:
        raise ValueError(f"Expected `{name}` to be 0 or more, but got {number}.")
    return number


def _remove_partial(folders: StoreFolders) -> None:
    for folder in subfolders(folders.partial):
        key = folder.name.partition("-")[0]
        if KEY_FORMAT.fullmatch(key):
            with folders.try_lock(key) as free:
                if free:
                    shutil.rmtree(folder, ignore_errors=True)


def _remove(folders: StoreFolders, folder: Path) -> bool:
    """Remove an entry or a work folder, unless it is locked or in use."""
    key = folder.name
    if not KEY_FORMAT.fullmatch(key) or folder.is_symlink() or not folder.exists():
        return False
    with (
        folders.try_lock(key) as free,
        _unused(folder / FACTS_FILE) as unused,
        _unused(folder / IN_USE_FILE) as idle,
    ):
        if not (free and unused and idle):
            return False
        doomed = folders.new_partial(key)
        try:
            folder.rename(doomed)  # at once, so that no process finds half an entry
        except OSError as error:
            raise folders.unusable(error) from None
        shutil.rmtree(doomed, ignore_errors=True)
        return True


@contextlib.contextmanager
def _unused(held: Path) -> Iterator[bool]:
    """Lock the file that users of a folder hold.

    Yields:
        Whether nobody held it.
    """
    try:
        file = held.open("rb+")
    except OSError:
        yield True  # no entry, or half of one
        return
    with file:
        try:
            lock_open_file(file, shared=False)
        except OSError:
            yield False
            return
        yield True


def _newest(folder: Path) -> float:
    times = [folder.lstat().st_mtime]
    with contextlib.suppress(OSError):
        times += [file.lstat().st_mtime for file in folder.rglob("*")]
    return max(times)
