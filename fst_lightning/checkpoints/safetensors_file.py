"""Read a safetensors file after checking its header against its length."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError, safe_open

from fst_lightning.checkpoints.card import CARD_KEY
from fst_lightning.checkpoints.content import Content, checked_tensors
from fst_lightning.checkpoints.errors import Refusal, shown

__all__ = ["looks_like_safetensors", "read_safetensors"]

_HEADER_LIMIT = 100_000_000


def looks_like_safetensors(start: bytes) -> bool:
    """Whether a file that begins with these 9 or more bytes has a safetensors header."""
    return len(start) >= 9 and start[8:9] == b"{"


def read_safetensors(path: Path, file: BinaryIO, size: int) -> Content:
    """Read the tensors and the card.

    Args:
        path: the file.
        file: the same file, open.
        size: its length in bytes.

    Raises:
        Refusal: the header lies or the file is damaged.
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
    try:
        with safe_open(path, framework="pt", device="cpu") as stored:
            # copies, because the file's own bytes may change under a mapping
            named: dict[object, object] = {
                name: stored.get_tensor(name).clone()
                for name in stored.keys()  # noqa: SIM118
            }
            metadata = stored.metadata() or {}
    except SafetensorError as error:
        raise Refusal(f"is damaged: {shown(error)}", "Copy or download the file again") from None
    return Content("safetensors", checked_tensors(named), metadata.get(CARD_KEY))  # type: ignore[arg-type]
