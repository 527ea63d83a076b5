"""What the store keeps of a model: its key, its description and its files."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from fst_lightning.text_files import read_text

SCHEMA = 2
"""Of descriptions. Raise it if the same description would make a different model than before."""

FACTS_FILE = "entry.json"
"""The file of an entry with its key, its description and the time when it was kept."""

KEY_FORMAT = re.compile(r"[0-9a-f]{16}")


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

        A later version may share the store and ask for its own models.
        """
        schema = self.description.get("schema")
        return not isinstance(schema, int) or schema < SCHEMA


class StoreUse:
    """Keeps an entry from being removed until it is released or deleted.

    Attributes:
        path: The entry's folder.
    """

    def __init__(self, path: Path, held: BinaryIO) -> None:
        self.path = path
        self._held = held

    def release(self) -> None:
        """Let others remove the entry."""
        self._held.close()

    def __del__(self) -> None:
        self.release()


def key_of(description: Mapping[str, object]) -> str:
    """Return 16 hexadecimal digits of the description's SHA-256.

    Neither the order of names nor the way a whole number is written (1 or 1.0) matters.

    Args:
        description: Plain data: dictionaries with string keys, sequences, numbers, strings,
            booleans and None.

    Raises:
        ValueError: If the description holds anything else.

    Example:
        >>> key_of({"seed": 0, "lr": 1.0}) == key_of({"lr": 1, "seed": 0})
        True
    """
    plain = as_plain(description)
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def checked_key(key: str) -> str:
    """Return the key.

    Raises:
        ValueError: If it is not 16 hexadecimal digits.
    """
    if not isinstance(key, str) or not KEY_FORMAT.fullmatch(key):
        raise ValueError(f"Expected `key` to be 16 hexadecimal digits, but got {key!r}.")
    return key


def read_entry(folder: Path) -> StoreEntry | None:
    """Read the entry in a folder.

    Returns:
        The entry; None if the folder is incomplete, foreign, or does not match its key.
    """
    facts = folder / FACTS_FILE
    try:
        if not KEY_FORMAT.fullmatch(folder.name) or folder.is_symlink():
            return None
        values = json.loads(read_text(facts))
        description = values["description"]
        now = datetime.now(UTC)
        created = min(now, datetime.fromisoformat(values["created"]).astimezone(UTC))
        if values["key"] != folder.name or key_of(description) != folder.name:
            return None
        used = datetime.fromtimestamp(min(now.timestamp(), facts.stat().st_mtime), UTC)
        size = sum(f.lstat().st_size for f in folder.rglob("*") if f.is_file())
    # ArithmeticError: the time is before the year 1.
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError):
        return None
    except RecursionError:
        return None
    return StoreEntry(folder.name, description, size, created, used, folder)


def write_facts(folder: Path, key: str, description: Mapping[str, object]) -> None:
    """Write the facts that make a folder an entry.

    Args:
        folder: The folder with the model's files.
        key: ``key_of(description)``.
        description: What the model is.
    """
    facts = {
        "key": key,
        "created": datetime.now(UTC).isoformat(),
        "description": as_plain(description),
    }
    (folder / FACTS_FILE).write_text(json.dumps(facts, indent=1), encoding="utf-8")


def is_open_file(file: BinaryIO, path: Path) -> bool:
    """Whether a path still leads to this open file, and not to a later one or to none."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def as_plain(value: object, where: str = "description") -> object:
    """Return a description as JSON would give it back, with whole numbers as int.

    Args:
        value: The description or a part of it.
        where: The name of that part, for the message.

    Raises:
        ValueError: If it holds anything but plain data.
    """
    if isinstance(value, Mapping):
        for key in value:
            if type(key) is not str:
                raise ValueError(f"Expected the names in `{where}` to be text, but got {key!r}.")
        return {key: as_plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float and math.isfinite(value):
        return int(value) if value.is_integer() else value
    raise ValueError(
        f"Expected `{where}` to be plain data (numbers, text, booleans, None, lists, "
        f"dictionaries), but got {type(value).__name__} {value!r:.80}."
    )
