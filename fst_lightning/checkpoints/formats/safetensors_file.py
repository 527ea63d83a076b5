"""Read a safetensors file after checking its header against its length."""

from __future__ import annotations

import json
import struct
from io import BufferedReader

from safetensors import SafetensorError, safe_open

from fst_lightning.checkpoints.card import CARD_KEY
from fst_lightning.checkpoints.content import Content, check_count, checked_tensors
from fst_lightning.checkpoints.errors import Refusal, shown
from fst_lightning.checkpoints.find_weights import check_prefix
from fst_lightning.regular_files import name_of_open

__all__ = ["looks_like_safetensors", "read_safetensors"]

# Parsed, it takes up to twenty times the memory.
_HEADER_LIMIT = 10_000_000
_DAMAGED = "Copy or download the file again"


def looks_like_safetensors(start: bytes) -> bool:
    """Whether a file that begins with these 9 or more bytes has a safetensors header."""
    return len(start) >= 9 and start[8:9] == b"{"


def read_safetensors(file: BufferedReader, size: int, key: str | None = None) -> Content:
    """Read the tensors and the card.

    Args:
        file: The open file.
        size: Its length in bytes.
        key: The start of the wanted names; None wants all of them.

    Raises:
        Refusal: If the header lies or the file is damaged.
    """
    file.seek(0)
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= length <= min(_HEADER_LIMIT, size - 8):
        raise Refusal(
            f"announces a safetensors header of {length:,} bytes in a file of {size:,} bytes",
            f"The header must fit the file and have at most {_HEADER_LIMIT:,} bytes; copy or "
            "download it again",
        )
    header = _header(file.read(length))
    check_count(len(header))
    prefix = "" if key is None else check_prefix(key, header)
    try:
        with safe_open(name_of_open(file), framework="pt", device="cpu") as stored:
            # copies, because the file's own bytes may change under a mapping
            named = {
                name: stored.get_tensor(name).clone()
                for name in stored.keys()  # noqa: SIM118
                if name.startswith(prefix)
            }
            metadata = stored.metadata() or {}
    # NotImplementedError and others where this torch lacks a type that the header names
    except (SafetensorError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise Refusal(f"is damaged: {shown(error)}", _DAMAGED) from None
    return Content("safetensors", checked_tensors(named), metadata.get(CARD_KEY))


def _header(text: bytes) -> dict[str, object]:
    """The header before the library reads it, which would take the last of equal names."""
    try:
        header = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise Refusal("is damaged: its header is no JSON", _DAMAGED) from None
    if not isinstance(header, dict):
        raise Refusal("is damaged: its header is no object", _DAMAGED)
    return header


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise Refusal("has a header that gives one name twice", "Ask for an unaltered file")
    return values
