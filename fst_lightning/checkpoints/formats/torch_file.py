"""Read what `torch.save` wrote, old and new, without ever running its pickle."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from io import BufferedReader

import torch
from torch import Tensor

from fst_lightning.checkpoints.card import CARD_KEY
from fst_lightning.checkpoints.content import Content, check_count, check_name, checked_tensors
from fst_lightning.checkpoints.errors import Refusal, shown
from fst_lightning.checkpoints.find_weights import Layout, find_layout
from fst_lightning.checkpoints.formats.archive import open_archive
from fst_lightning.checkpoints.formats.pickle_scan import PICKLE_LIMIT, Scan, scan_pickle
from fst_lightning.checkpoints.formats.pickle_values import (
    Foreign,
    NumpyNumber,
    Pairs,
    StorageRef,
    TensorRef,
)

__all__ = ["LEGACY_START", "read_torch"]

LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The first bytes of a file that torch before 1.6 wrote: a pickled magic number."""

_SHARING_LIMIT = 4
_ALWAYS_ALLOWED = 16 * 2**20
_DAMAGED = "Copy or download the file again"

_Data = Callable[[StorageRef], Tensor]
"""Reads the bytes of a storage."""


def read_torch(
    file: BufferedReader, size: int, key: str | None = None, *, plain: bool = False
) -> Content:
    """Read the network's tensors from a zip or legacy torch file.

    The pickle is described, instruction by instruction, and never loaded. The tensors of the
    described state_dict are made from their data in the file. Nothing else is built.

    Args:
        file: The open file; must begin like a zip file or like `LEGACY_START`.
        size: Its length in bytes.
        key: Which state_dict to take; None chooses.
        plain: Refuse a file that holds anything that `torch.load(weights_only=True)` does not take.

    Raises:
        Refusal: If the file is damaged, hostile or holds no state_dict.
    """
    file.seek(0)
    scan, data, stored = (
        _open_zip(file, size) if file.read(2) == b"PK" else _open_legacy(file, size)
    )
    if plain and (refusal := scan.foreign or scan.unusual):
        raise refusal
    layout = find_layout(scan.root, key) if scan.unusual is None else _found(scan, key)
    refs = _described(layout)
    _check_sharing(refs, stored)
    read: dict[str, Tensor] = {}
    tensors = {name: _tensor(ref, data, read) for name, ref in refs.items()}
    fields = scan.root.fields() if isinstance(scan.root, Pairs) else {}
    card = fields.get(CARD_KEY)
    if card is not None and not isinstance(card, str):
        raise Refusal(f"has a {shown(CARD_KEY)} entry that is no text", "Ask for an unaltered file")
    extra = _facts(fields) if layout.format == "backdoorbench" else {}
    return Content(layout.format, checked_tensors(tensors), card, extra, layout.others)


def _found(scan: Scan, key: str | None) -> Layout:
    try:
        return find_layout(scan.root, key)
    except Refusal:
        raise scan.unusual or AssertionError from None


def _open_zip(file: BufferedReader, size: int) -> tuple[Scan, _Data, int]:
    archive = open_archive(file, size)
    scan = scan_pickle(archive.pickle)
    for key, storage in scan.storages.items():
        if key not in archive.data or archive.data[key].file_size != storage.nbytes:
            raise Refusal(f"is damaged: the tensor data {shown(key)} has another size", _DAMAGED)
    if archive.order not in (b"little", b"big"):
        raise Refusal(f"is damaged: its byte order is {shown(archive.order[:20])}", _DAMAGED)
    swapped = archive.order != sys.byteorder.encode()

    def data(storage: StorageRef) -> Tensor:
        content = archive.read(storage.key)
        if swapped and storage.dtype.itemsize > 1:
            content.untyped_storage().byteswap(storage.dtype)  # type: ignore[no-untyped-call]
        return content

    return scan, data, sum(entry.file_size for entry in archive.data.values())


def _open_legacy(file: BufferedReader, size: int) -> tuple[Scan, _Data, int]:
    file.seek(0)
    head = file.read(PICKLE_LIMIT)
    end = 0
    for _ in range(3):  # magic number, protocol, facts about the machine
        end = scan_pickle(head, end).end
    scan = scan_pickle(head, end)
    keys = scan_pickle(head, scan.end)
    order = keys.root
    if not isinstance(order, list) or sorted(map(str, order)) != sorted(scan.storages):
        raise scan.unusual or Refusal(
            "is damaged: the list of its tensor data does not fit", _DAMAGED
        )
    starts: dict[str, int] = {}
    end = keys.end
    for key in map(str, order):
        starts[key] = end + 8  # a count comes first
        end += 8 + scan.storages[key].nbytes
    if end > size:
        raise Refusal(
            f"is cut short: {end - keys.end:,} bytes of tensor data are announced, "
            f"{size - keys.end:,} are there",
            _DAMAGED,
        )

    def data(storage: StorageRef) -> Tensor:
        content = torch.empty(storage.nbytes, dtype=torch.uint8)
        file.seek(starts[storage.key] - 8)
        count = int.from_bytes(file.read(8), "little")
        if count != storage.numel or file.readinto(content.numpy().data) != storage.nbytes:
            raise Refusal(f"is damaged: {shown(storage.key)} has another size", _DAMAGED)
        return content

    return scan, data, end - keys.end


def _described(layout: Layout) -> dict[str, TensorRef]:
    """Return the tensors of the state_dict that are wanted.

    Raises:
        Refusal: If one of them could be made by foreign code alone.
    """
    refs: dict[str, TensorRef] = {}
    for name, value in layout.state.items:
        if layout.prefix and not (type(name) is str and name.startswith(layout.prefix)):
            continue
        if isinstance(value, TensorRef):
            refs[check_name(name)] = value
        elif isinstance(value, Foreign):
            raise value.why
    check_count(len(refs))
    return refs


def _check_sharing(refs: Mapping[str, TensorRef], stored: int) -> None:
    needed = sum(math.prod(ref.shape) * ref.storage.dtype.itemsize for ref in refs.values())
    if needed > _SHARING_LIMIT * stored + _ALWAYS_ALLOWED:
        raise Refusal(
            f"is made to fill the memory: {stored:,} bytes of data pose as tensors of "
            f"{needed:,} bytes",
            "Ask for a file that torch.save(model.state_dict(), ...) wrote",
        )


def _tensor(ref: TensorRef, data: _Data, read: dict[str, Tensor]) -> Tensor:
    """Make a tensor; its description was checked against its storage."""
    storage = ref.storage
    if storage.key not in read:
        read[storage.key] = data(storage)
    content = read[storage.key].view(storage.dtype) if storage.numel else torch.empty(0)
    return content.to(storage.dtype).as_strided(ref.shape, ref.stride, ref.offset)


def _facts(fields: dict[str, object]) -> dict[str, object]:
    """Return what BackdoorBench says about the model; its images and folders are left alone."""
    name, classes, size = (fields.get(k) for k in ("model_name", "num_classes", "img_size"))
    if type(name) is not str or len(name) > 1_000 or not name.isprintable():
        raise Refusal("has a `model_name` that is no short text", "Ask for an unaltered file")
    count = _whole(classes)
    if count is None or not 2 <= count <= 100_000:
        raise Refusal(
            f"has {shown(classes)} as `num_classes`", "Valid are the integers from 2 to 100,000"
        )
    facts: dict[str, object] = {"model_name": name, "num_classes": count}
    if size is not None:
        sides = [_whole(side) for side in size] if isinstance(size, tuple | list) else []
        if not 1 <= len(sides) <= 4 or any(s is None or not 1 <= s <= 4_096 for s in sides):
            raise Refusal("has an `img_size` that is none", "Valid are sides from 1 to 4,096")
        facts["img_size"] = tuple(sides)
    return facts


def _whole(value: object) -> int | None:
    if isinstance(value, NumpyNumber):
        return value.whole()
    return value if type(value) is int else None
