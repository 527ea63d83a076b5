"""Keeps models by a key, and finds them again."""

from __future__ import annotations

import builtins
import contextlib
import os
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from fst_lightning.checkpoints.store.entry import (
    FACTS_FILE,
    StoreEntry,
    StoreUse,
    checked_key,
    is_open_file,
    key_of,
    read_entry,
    write_facts,
)
from fst_lightning.checkpoints.store.folders import StoreFolders
from fst_lightning.checkpoints.store.pruning import IN_USE_FILE, age_from, check_limit, prune
from fst_lightning.checkpoints.write import sync_folder
from fst_lightning.locks import lock_open_file


class Store:
    """Keeps models by a key made of everything that decides how they turn out.

    Args:
        root: The folder; made when something is first kept or locked.
        limit_bytes: Size that the models may have together, 0 or more; None for no limit. When a
            model is kept, those that were not used for the longest time are removed, but neither
            the new one nor any that is in use.

    Raises:
        ValueError: If the limit is not 0 or more.

    Example:
        >>> store = Store("store")
        >>> store.key({"seed": 0, "lr": 1.0}) == store.key({"lr": 1, "seed": 0})
        True
    """

    def __init__(self, root: str | Path, limit_bytes: float | None = None) -> None:
        self.root = Path(root)
        self.limit_bytes = check_limit("limit_bytes", limit_bytes)
        self._folders = StoreFolders(self.root)

    def key(self, description: Mapping[str, object]) -> str:
        """Return the key of a description: 16 hexadecimal digits.

        Args:
            description: Plain data. Neither the order of names nor the way a whole number is
                written (1 or 1.0) matters.

        Raises:
            ValueError: If the description holds anything but plain data.
        """
        return key_of(description)

    def entry(self, key: str) -> Path | None:
        """Return the folder of a complete entry, or None."""
        found = read_entry(self._folders.models / checked_key(key))
        return None if found is None else found.path

    def use(self, key: str) -> StoreUse | None:
        """Hold a complete entry, so that it is not removed; any number of processes may.

        It needs no right to write into the store.

        Returns:
            None if there is no complete entry.
        """
        while (path := self.entry(key)) is not None:
            try:
                facts = (path / FACTS_FILE).open("rb")
            except FileNotFoundError:
                continue  # removed meanwhile: look again
            with contextlib.suppress(OSError):  # without locks it cannot be removed either
                lock_open_file(facts, shared=True)
            if is_open_file(facts, path / FACTS_FILE):
                with contextlib.suppress(OSError):  # a store that is read only
                    os.utime(path / FACTS_FILE)
                return StoreUse(path, facts)
            facts.close()  # replaced, or removed, before it was held
        return None

    def lock(
        self, key: str, timeout: float | None = None
    ) -> contextlib.AbstractContextManager[None]:
        """Hold the key alone among all processes; a dead process holds nothing.

        The same thread may hold it more than once.

        Args:
            key: The entry's key.
            timeout: Seconds to wait; None waits without limit.

        Raises:
            StoreError: If the folder cannot be written, its file system has no locks, or the time
                is over.
        """
        return self._folders.lock(key, timeout)

    def keep(
        self,
        key: str,
        description: Mapping[str, object],
        write: Callable[[Path], None],
        *,
        replace: bool = False,
    ) -> Path:
        """Keep what `write` puts into a folder; others see all of it or nothing.

        An entry that is there already stays, and `write` is not called, unless it is replaced.

        Args:
            key: `key(description)`.
            description: What the model is.
            write: Gets an empty folder and fills it.
            replace: Put it in the place of an entry that is there already.

        Returns:
            The entry's folder.

        Raises:
            ValueError: If the key is not the description's.
            StoreError: If the folder cannot be written.
        """
        if key != key_of(description):
            raise ValueError(
                f"Expected `key` to be {key_of(description)}, made of the description, but got "
                f"{key!r}."
            )
        with self.lock(key):
            existing = self.entry(key)
            if existing is not None and not replace:
                return existing
            for rest in self._folders.partial.glob(f"{key}-*"):
                shutil.rmtree(rest, ignore_errors=True)  # of a process that died
            temporary = self._folders.new_partial(key)
            try:
                self._folders.made(temporary)
                age_from(self._folders, time.time())
                write(temporary)
                write_facts(temporary, key, description)
                sync_folder(temporary)
                kept = self._publish(temporary, key)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            if self.limit_bytes is not None:
                self.prune(self.limit_bytes)  # this one is locked, and so stays
            return kept

    def list(self) -> builtins.list[StoreEntry]:
        """Return the complete entries, the oldest first; foreign files are passed over."""
        return self._folders.entries()

    def prune(
        self,
        keep_bytes: float | None = None,
        older_than_days: float | None = None,
        keys: Collection[str] | None = None,
        stale: bool = False,
    ) -> builtins.list[str]:
        """Remove entries, and always what dead processes left half-written.

        An entry that is locked or in use stays.

        Args:
            keep_bytes: Remove entries until the rest has at most so many bytes; those that were
                not used for the longest time go first.
            older_than_days: Remove entries, and work folders, older than so many days.
            keys: Remove these entries and their work folders.
            stale: Remove the entries that today's code does not ask for.

        Returns:
            The keys of the removed entries.

        Raises:
            ValueError: If a limit is not 0 or more.
            StoreError: If the folder cannot be written.
        """
        return prune(self._folders, keep_bytes, older_than_days, keys, stale)

    def work(self, key: str) -> Path:
        """Return the folder with the state that an interrupted run needs to resume."""
        folder = self._folders.made(self._folders.work / checked_key(key))
        if not os.access(folder, os.W_OK):
            raise self._folders.unusable(PermissionError(f"{folder} is read only"))
        return folder

    def use_work(self, key: str) -> StoreUse:
        """Create a work folder and hold it, so that it is not removed; any number of processes may.

        Raises:
            StoreError: If the folder cannot be written.
        """
        while True:
            folder = self.work(key)
            try:
                held = (folder / IN_USE_FILE).open("ab+")
            except FileNotFoundError:
                continue  # removed meanwhile: make it again
            except OSError as error:
                raise self._folders.unusable(error) from None
            with contextlib.suppress(OSError):  # without locks it cannot be removed either
                lock_open_file(held, shared=True)
            if is_open_file(held, folder / IN_USE_FILE):
                return StoreUse(folder, held)
            held.close()

    def clear_work(self, key: str) -> None:
        """Remove the key's work folder, if there is one."""
        shutil.rmtree(self._folders.work / checked_key(key), ignore_errors=True)

    def _publish(self, temporary: Path, key: str) -> Path:
        target = self._folders.made(self._folders.models) / key
        replaced: Path | None = None
        try:
            if target.is_symlink() or target.exists():
                # no complete entry, or one to replace
                replaced = self._folders.new_partial(key)
                target.rename(replaced)
            temporary.rename(target)
        except OSError as error:
            raise self._folders.unusable(error) from None
        if replaced is not None:
            shutil.rmtree(replaced, ignore_errors=True)
        sync_folder(target.parent)
        return target
