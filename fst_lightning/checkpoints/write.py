"""Write weights as safetensors, whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from fst_lightning.checkpoints.card import CARD_KEY, ModelCard
from fst_lightning.checkpoints.errors import shown
from fst_lightning.checkpoints.keys import KeyMap

__all__ = ["sync_folder", "whole_file", "write_state"]


def write_state(
    path: str | Path,
    state_dict: Mapping[str, Tensor],
    key_map: KeyMap | None = None,
    card: ModelCard | None = None,
) -> None:
    """Write tensors to a safetensors file; a reader sees the old file or the new one.

    Args:
        path: The file; its folder is made if need be.
        state_dict: Tensors under the network's names, on any device.
        key_map: Gives the tensors the names of the file that they came from.
        card: Stored as JSON in the metadata, beside plain `mean` and `std`.

    Raises:
        ValueError: If there is no tensor, or one is not dense.
        OSError: If the file cannot be written.
    """
    path = Path(path)
    named = dict(state_dict) if key_map is None else key_map.restore(state_dict)
    tensors = _separate(named)
    metadata = {"format": "pt"}
    if card is not None:
        metadata[CARD_KEY] = card.to_json()
        metadata["mean"] = ", ".join(map(repr, card.mean))
        metadata["std"] = ", ".join(map(repr, card.std))
    with whole_file(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=metadata)
            _sort_metadata(temporary)
        except SafetensorError as error:
            # Its own message for a full disk contains the system's error number.
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def _sort_metadata(path: Path) -> None:
    """Put the metadata in the order of its names: safetensors writes it in a random one.

    Equal networks are then equal files.
    """
    with path.open("rb+") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= length:  # Spaces may end it; the tensors stay where they are.
            file.seek(8)
            file.write(text.ljust(length))


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Write a file beside its place, and put it there when it is complete and on the disk.

    Args:
        path: Where whoever reads it sees the old file or the new one; its folder is made.

    Returns:
        The file to write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}.part")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # as any other file: safetensors makes one for its owner alone
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if (
            error.errno and error.filename is None
        ):  # Of what was written into it, the system names no file.
            error.filename = str(path)
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Ask the system to make the folder's list of names durable, if it can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _separate(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous CPU tensors of which no two share memory."""
    if not named:
        raise ValueError("Expected `state_dict` to hold tensors, but it is empty.")
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, value in named.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            raise ValueError(f"Expected {shown(name)} to be a dense tensor.")
        tensor = value.detach().cpu().contiguous()
        address = tensor.untyped_storage().data_ptr()
        if address in seen or tensor.untyped_storage().nbytes() != tensor.nbytes:
            tensor = tensor.clone()
            address = tensor.untyped_storage().data_ptr()
        seen.add(address)
        tensors[name] = tensor
    return tensors
