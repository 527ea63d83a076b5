"""A folder that keeps backdoored models, so that each is trained once."""

from __future__ import annotations

import builtins
import contextlib
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from fst_lightning.checkpoints.write import sync_folder
from fst_lightning.locks import NoLocksError, file_lock, lock_open_file
from fst_lightning.text_files import read_text

__all__ = ["SCHEMA", "Store", "StoreEntry", "StoreError", "StoreUse"]

SCHEMA = 2
"""Of descriptions. Raised where the same description comes to make another model than before."""

_KEY = re.compile(r"[0-9a-f]{16}")
_FACTS = "entry.json"
_IN_USE = "in_use.lock"
_DAY = 86_400.0


class StoreError(OSError):
    """The store's folder cannot be used; the message names it and `paths.store=`."""


@dataclass(frozen=True)
class StoreEntry:
    """One kept model.

    Args:
        key: Its name in the store.
        description: The plain data that the key was made of.
        bytes: Size of its files.
        created: When it was kept, in UTC; not later than now, even if the clock was wrong.
        used: When it was last kept or used, in UTC; the same.
        path: Its folder.
    """

    key: str
    description: dict[str, object]
    bytes: int
    created: datetime
    used: datetime
    path: Path

    @property
    def stale(self) -> bool:
        """Whether an earlier version made this model, so that today's code never asks for it.

        A later one may share the store, and ask for its own.
        """
        schema = self.description.get("schema")
        return not isinstance(schema, int) or schema < SCHEMA


class StoreUse:
    """Keeps an entry from being removed, for as long as this object lives and is not released.

    Attributes:
        path: The entry's folder.
    """

    def __init__(self, path: Path, facts: BinaryIO) -> None:
        self.path = path
        self._facts = facts

    def release(self) -> None:
        """Let others remove it."""
        self._facts.close()

    def __del__(self) -> None:
        self.release()


class Store:
    """Keeps models by a key made of everything that decides how they turn out.

    Args:
        root: The folder; made when something is first kept or locked.
        limit_bytes: What the models may take, at least 0: when one is kept, those that were not
            used for the longest time go, but neither this one nor any that is in use. None: no
            limit.

    Raises:
        ValueError: If the limit is no number of at least 0.

    Example:
        >>> store = Store("store")
        >>> store.key({"seed": 0, "lr": 1.0}) == store.key({"lr": 1, "seed": 0})
        True
    """

    def __init__(self, root: str | Path, limit_bytes: float | None = None) -> None:
        self.root = Path(root)
        self.limit_bytes = _limit("limit_bytes", limit_bytes)
        self._locks: dict[str, FileLock] = {}

    def key(self, description: Mapping[str, object]) -> str:
        """Return 16 hexadecimal digits of the description's SHA-256.

        Neither the order of names nor the way a whole number is written (1 or 1.0) matters.

        Args:
            description: Plain data: dictionaries with string keys, sequences, numbers, strings,
                booleans and None.

        Raises:
            ValueError: If the description holds anything else.
        """
        plain = _plain(description, "description")
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def entry(self, key: str) -> Path | None:
        """Return the folder of a complete entry, or None."""
        found = self._read(self._models / _checked(key))
        return None if found is None else found.path

    def use(self, key: str) -> StoreUse | None:
        """Hold a complete entry, so that it is not removed; any number of processes may.

        It needs no right to write into the store.

        Returns:
            None if there is no complete entry.
        """
        while (path := self.entry(key)) is not None:
            try:
                facts = (path / _FACTS).open("rb")
            except FileNotFoundError:
                continue  # removed meanwhile: look again
            with contextlib.suppress(OSError):  # without locks it cannot be removed either
                lock_open_file(facts, shared=True)
            if _is_open_file(facts, path / _FACTS):
                with contextlib.suppress(OSError):  # a store that is read only
                    os.utime(path / _FACTS)
                return StoreUse(path, facts)
            facts.close()  # replaced, or removed, before it was held
        return None

    @contextlib.contextmanager
    def lock(self, key: str, timeout: float | None = None) -> Iterator[None]:
        """Hold the key alone among all processes; a dead process holds nothing.

        The same thread may hold it more than once.

        Args:
            key: The entry's key.
            timeout: Seconds to wait; None waits for ever.

        Raises:
            StoreError: If the folder cannot be written, its file system has no locks, or the time
                is over.
        """
        lock = self._lock(key)
        try:
            lock.acquire(timeout=-1 if timeout is None else timeout)
        except Timeout:
            raise StoreError(
                f"{self.root}: another process has been making the model {key} for {timeout} "
                "seconds. Wait for it, or choose another folder with `paths.store=`."
            ) from None
        except OSError as error:
            raise self._unusable(error) from None
        try:
            yield
        finally:
            lock.release()

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
        if key != self.key(description):
            raise ValueError(
                f"Expected `key` to be {self.key(description)}, made of the description, but got "
                f"{key!r}."
            )
        with self.lock(key):
            existing = self.entry(key)
            if existing is not None and not replace:
                return existing
            for rest in self._folder("partial").glob(f"{key}-*"):
                shutil.rmtree(rest, ignore_errors=True)  # of a process that died
            temporary = self._folder("partial") / f"{key}-{secrets.token_hex(6)}"
            try:
                self._make(temporary)
                self._age_from(time.time())
                write(temporary)
                facts = {
                    "key": key,
                    "created": datetime.now(UTC).isoformat(),
                    "description": _plain(description, "description"),
                }
                (temporary / _FACTS).write_text(json.dumps(facts, indent=1), encoding="utf-8")
                sync_folder(temporary)
                kept = self._publish(temporary, key)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            if self.limit_bytes is not None:
                self.prune(self.limit_bytes)  # this one is locked, and so stays
            return kept

    def list(self) -> builtins.list[StoreEntry]:
        """Return the complete entries, the oldest first; foreign files are passed over."""
        entries = [self._read(folder) for folder in _children(self._models)]
        return sorted(
            (entry for entry in entries if entry is not None), key=lambda e: (e.created, e.key)
        )

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
        """
        _limit("keep_bytes", keep_bytes)
        _limit("older_than_days", older_than_days)
        now = time.time()
        self._age_from(now)
        entries = self.list()
        named = {_checked(key) for key in keys or ()}
        doomed = {entry.key for entry in entries if entry.key in named or (stale and entry.stale)}
        if older_than_days is not None:
            oldest = now - older_than_days * _DAY
            doomed |= {entry.key for entry in entries if entry.created.timestamp() < oldest}
            named |= {f.name for f in _children(self.root / "work") if _newest(f) < oldest}
        self._sweep()
        removed = [e.key for e in entries if e.key in doomed and self._remove(self._models, e.key)]
        if keep_bytes is not None:
            rest = [entry for entry in entries if entry.key not in removed]
            total = sum(entry.bytes for entry in rest)
            for entry in sorted(rest, key=lambda entry: (entry.used, entry.key)):
                if total > keep_bytes and self._remove(self._models, entry.key):
                    total -= entry.bytes
                    removed.append(entry.key)
        for key in sorted(named):
            self._remove(self.root / "work", key)
        return removed

    def work(self, key: str) -> Path:
        """Return the folder with the state that an interrupted run needs to resume."""
        folder = self._folder("work") / _checked(key)
        self._make(folder)
        if not os.access(folder, os.W_OK):
            raise self._unusable(PermissionError(f"{folder} is read only"))
        return folder

    def use_work(self, key: str) -> StoreUse:
        """Create a work folder and hold it, so that it is not removed; any number of processes may.

        Raises:
            StoreError: If the folder cannot be written.
        """
        while True:
            folder = self.work(key)
            try:
                held = (folder / _IN_USE).open("ab+")
            except FileNotFoundError:
                continue  # removed meanwhile: make it again
            except OSError as error:
                raise self._unusable(error) from None
            with contextlib.suppress(OSError):  # without locks it cannot be removed either
                lock_open_file(held, shared=True)
            if _is_open_file(held, folder / _IN_USE):
                return StoreUse(folder, held)
            held.close()

    def clear_work(self, key: str) -> None:
        """Remove the key's work folder, if there is one."""
        shutil.rmtree(self.root / "work" / _checked(key), ignore_errors=True)

    @property
    def _models(self) -> Path:
        return self.root / "models"

    def _lock(self, key: str) -> FileLock:
        if _checked(key) not in self._locks:
            folder = self._folder("locks")
            try:
                self._locks[key] = file_lock(folder / f"{key}.lock")
            except NoLocksError as error:
                raise StoreError(
                    f"{error} Put the store elsewhere with `paths.store=`; what it holds already "
                    "can be used where it is."
                ) from None
            except OSError as error:
                raise self._unusable(error) from None
        return self._locks[key]

    def _folder(self, name: str) -> Path:
        folder = self.root / name
        self._make(folder)
        return folder

    def _make(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unusable(error) from None

    def _unusable(self, error: Exception) -> StoreError:
        return StoreError(
            f"{self.root}: the store cannot be written ({error}). Make the folder writable, or "
            "choose another with `paths.store=`."
        )

    def _publish(self, temporary: Path, key: str) -> Path:
        target = self._folder("models") / key
        replaced: Path | None = None
        try:
            if target.is_symlink() or target.exists():
                # no complete entry, or one to replace
                replaced = self._folder("partial") / f"{key}-{secrets.token_hex(6)}"
                target.rename(replaced)
            temporary.rename(target)
        except OSError as error:
            raise self._unusable(error) from None
        if replaced is not None:
            shutil.rmtree(replaced, ignore_errors=True)
        sync_folder(target.parent)
        return target

    def _read(self, folder: Path) -> StoreEntry | None:
        facts = folder / _FACTS
        try:
            if not _KEY.fullmatch(folder.name) or folder.is_symlink():
                return None
            values = json.loads(read_text(facts))
            description = values["description"]
            now = datetime.now(UTC)
            created = min(now, datetime.fromisoformat(values["created"]).astimezone(UTC))
            if values["key"] != folder.name or self.key(description) != folder.name:
                return None
            used = datetime.fromtimestamp(min(now.timestamp(), facts.stat().st_mtime), UTC)
            size = sum(f.lstat().st_size for f in folder.rglob("*") if f.is_file())
        # ArithmeticError: made before the year 1
        except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError):
            return None
        except RecursionError:
            return None
        return StoreEntry(folder.name, description, size, created, used, folder)

    def _age_from(self, now: float) -> None:
        """Let what was used by a clock that was ahead of this one age from now on, in its order.

        It would go last for as long as the clock was ahead, and what is made now before it.
        """
        ahead = []
        for folder in _children(self._models):
            with contextlib.suppress(OSError):
                facts = folder / _FACTS
                if (used := facts.stat().st_mtime) > now:
                    ahead.append((used, facts))
        for place, (_, facts) in enumerate(sorted(ahead, reverse=True)):
            # Before this second: the time of a file that is made now may be some milliseconds late.
            used = now - 1 - place / 1000
            with contextlib.suppress(OSError):  # removed meanwhile, or read only
                os.utime(facts, (used, used))

    def _sweep(self) -> None:
        for folder in _children(self.root / "partial"):
            key = folder.name.partition("-")[0]
            if _KEY.fullmatch(key):
                with self._unheld(key) as free:
                    if free:
                        shutil.rmtree(folder, ignore_errors=True)

    def _remove(self, parent: Path, key: str) -> bool:
        folder = parent / key
        if not _KEY.fullmatch(key) or folder.is_symlink() or not folder.exists():
            return False
        with (
            self._unheld(key) as free,
            _unused(folder / _FACTS) as unused,
            _unused(folder / _IN_USE) as idle,
        ):
            if not (free and unused and idle):
                return False
            doomed = self._folder("partial") / f"{key}-{secrets.token_hex(6)}"
            try:
                folder.rename(doomed)  # at once, so that no process finds half an entry
            except OSError as error:
                raise self._unusable(error) from None
            shutil.rmtree(doomed, ignore_errors=True)
            return True

    @contextlib.contextmanager
    def _unheld(self, key: str) -> Iterator[bool]:
        """Hold the key for a moment if no process does, including this one."""
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
            raise self._unusable(error) from None
        try:
            yield True
        finally:
            lock.release()


@contextlib.contextmanager
def _unused(facts: Path) -> Iterator[bool]:
    """Lock an entry that is not in use."""
    try:
        file = facts.open("rb+")
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


def _is_open_file(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _limit(name: str, number: float | None) -> float | None:
    if number is not None and not number >= 0:
        raise ValueError(f"Expected `{name}` to be 0 or more, but got {number}.")
    return number


def _checked(key: str) -> str:
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise ValueError(f"Expected `key` to be 16 hexadecimal digits, but got {key!r}.")
    return key


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(child for child in folder.iterdir() if child.is_dir())
    except OSError:
        return []


def _newest(folder: Path) -> float:
    times = [folder.lstat().st_mtime]
    with contextlib.suppress(OSError):
        times += [file.lstat().st_mtime for file in folder.rglob("*")]
    return max(times)


def _plain(value: object, where: str) -> object:
    if isinstance(value, Mapping):
        for key in value:
            if type(key) is not str:
                raise ValueError(f"Expected the names in `{where}` to be text, but got {key!r}.")
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float and math.isfinite(value):
        return int(value) if value.is_integer() else value
    raise ValueError(
        f"Expected `{where}` to be plain data (numbers, text, booleans, None, lists, "
        f"dictionaries), but got {type(value).__name__} {value!r:.80}."
    )
