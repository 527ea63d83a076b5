"""The folders and locks of a store."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from fst_lightning.checkpoints.store.entry import StoreEntry, checked_key, read_entry
from fst_lightning.locks import NoLocksError, file_lock


class StoreError(OSError):
    """The store's folder cannot be used; the message names it and `paths.store=`."""


class StoreFolders:
    """Where a store keeps what, and who may change it.

    ``models/KEY`` is a complete entry, ``work/KEY`` the state of an interrupted run,
    ``partial/KEY-RANDOM`` what is written or removed at the moment, and ``locks/KEY.lock`` the
    lock of a key.

    Args:
        root: The store's folder. It is made when something is first kept or locked.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._locks: dict[str, FileLock] = {}

    @property
    def models(self) -> Path:
        """The folder of complete entries; it may not exist yet."""
        return self.root / "models"

    @property
    def work(self) -> Path:
        """The folder of interrupted runs; it may not exist yet."""
        return self.root / "work"

    @property
    def partial(self) -> Path:
        """The folder of half-written and half-removed entries; it may not exist yet."""
        return self.root / "partial"

    def entries(self) -> list[StoreEntry]:
        """The complete entries, the oldest first; foreign files are passed over."""
        entries = [read_entry(folder) for folder in subfolders(self.models)]
        return sorted(
            (entry for entry in entries if entry is not None), key=lambda e: (e.created, e.key)
        )

    def new_partial(self, key: str) -> Path:
        """A path for a half-written entry that nothing else uses; the folder around it is made."""
        return self.made(self.partial) / f"{key}-{secrets.token_hex(6)}"

    def made(self, folder: Path) -> Path:
        """Make a folder, and return it.

        Raises:
            StoreError: If it cannot be made.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self.unusable(error) from None
        return folder

    def unusable(self, error: Exception) -> StoreError:
        """The error for a store that cannot be written, with the reason."""
        return StoreError(
            f"{self.root}: the store cannot be written ({error}). Make the folder writable, or "
            "choose another with `paths.store=`."
        )

    @contextlib.contextmanager
    def lock(self, key: str, timeout: float | None = None) -> Iterator[None]:
        """Hold the key alone among all processes; see :meth:`Store.lock`."""
        lock = self._lock(key)
        try:
            lock.acquire(timeout=-1 if timeout is None else timeout)
        except Timeout:
            raise StoreError(
                f"{self.root}: another process has been making the model {key} for {timeout} "
                "seconds. Wait for it, or choose another folder with `paths.store=`."
            ) from None
        except OSError as error:
            raise self.unusable(error) from None
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def try_lock(self, key: str) -> Iterator[bool]:
        """Hold the key for a moment if no process does, including this one.

        Yields:
            Whether the key was free.
        """
        lock = self._lock(key)
        if lock.is_locked:
            yield False
            return
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        except OSError as error:
            raise self.unusable(error) from None
        try:
            yield True
        finally:
            lock.release()

    def _lock(self, key: str) -> FileLock:
        if checked_key(key) not in self._locks:
            folder = self.made(self.root / "locks")
            try:
                self._locks[key] = file_lock(folder / f"{key}.lock")
            except NoLocksError as error:
                raise StoreError(
                    f"{error} Put the store elsewhere with `paths.store=`; what it holds already "
                    "can be used where it is."
                ) from None
            except OSError as error:
                raise self.unusable(error) from None
        return self._locks[key]


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted; none if it does not exist."""
    try:
        return sorted(child for child in folder.iterdir() if child.is_dir())
    except OSError:
        return []
