"""Read what `torch.save` wrote, old and new, without ever running its pickle."""

from __future__ import annotations

import warnings
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from fst_lightning.checkpoints.archive import open_archive
from fst_lightning.checkpoints.card import CARD_KEY
from fst_lightning.checkpoints.content import Content, checked_tensors
from fst_lightning.checkpoints.errors import Refusal, shown
from fst_lightning.checkpoints.layout import Layout, find_layout
from fst_lightning.checkpoints.pickle_scan import PICKLE_LIMIT, Scan, scan_pickle

__all__ = ["LEGACY_START", "read_torch"]

LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The first bytes of a file that torch before 1.6 wrote: a pickled magic number."""

_SHARING_LIMIT = 4
_ALWAYS_ALLOWED = 16 * 2**20
_DAMAGED = "Copy or download the file again"


def read_torch(file: BinaryIO, size: int) -> Content:
    """Read the tensors of a zip or legacy torch file.

    The pickle is described first, instruction by instruction, and only a file whose every name,
    call and size is harmless goes to `torch.load(weights_only=True)`.

    Args:
        file: the open file; must begin like a zip file or like `LEGACY_START`.
        size: its length in bytes.

    Raises:
        Refusal: the file is damaged, hostile or holds no state_dict.
    """
    file.seek(0)
    scan = _scan_zip(file, size) if file.read(2) == b"PK" else _scan_legacy(file, size)
    layout = find_layout(scan.root)
    if scan.numpy is not None and layout.format != "backdoorbench":
        raise Refusal(
            f"holds NumPy values ({shown(scan.numpy)}), which only BackdoorBench's files may",
            "Ask for a state_dict: torch.save(model.state_dict(), ...)",
        )
    scan.root = None  # what it describes is about to be made a second time
    return _content(_load(file, numpy=scan.numpy is not None), layout)


def _scan_zip(file: BinaryIO, size: int) -> Scan:
    archive = open_archive(file, size)
    scan = scan_pickle(archive.pickle)
    for key, storage in scan.storages.items():
        if archive.sizes.get(key) != storage.numel * storage.itemsize:
            raise Refusal(f"is damaged: the tensor data {shown(key)} has another size", _DAMAGED)
    _check_sharing(scan, sum(archive.sizes.values()))
    return scan


def _scan_legacy(file: BinaryIO, size: int) -> Scan:
    file.seek(0)
    head = file.read(PICKLE_LIMIT)
    end = 0
    for _ in range(3):  # magic number, protocol, facts about the machine
        end = scan_pickle(head, end).end
    scan = scan_pickle(head, end)
    keys = scan_pickle(head, scan.end)
    if not isinstance(keys.root, list) or sorted(map(str, keys.root)) != sorted(scan.storages):
        raise Refusal("is damaged: the list of its tensor data does not fit", _DAMAGED)
    needed = sum(8 + s.numel * s.itemsize for s in scan.storages.values())
    if needed > size - keys.end:
        raise Refusal(
            f"is cut short: {needed:,} bytes of tensor data are announced, "
            f"{size - keys.end:,} are there",
            _DAMAGED,
        )
    _check_sharing(scan, needed)
    return scan


def _check_sharing(scan: Scan, stored: int) -> None:
    if scan.tensor_bytes > _SHARING_LIMIT * stored + _ALWAYS_ALLOWED:
        raise Refusal(
            f"is made to fill the memory: {stored:,} bytes of data pose as tensors of "
            f"{scan.tensor_bytes:,} bytes",
            "Ask for a file that torch.save(model.state_dict(), ...) wrote",
        )


def _load(file: BinaryIO, *, numpy: bool) -> object:
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with torch.serialization.safe_globals(_numpy_names() if numpy else []):
                return torch.load(file, map_location="cpu", weights_only=True, mmap=False)
    except Exception as error:
        # everything here comes from the file's bytes: torch raises many types for damaged ones
        first = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise Refusal(f"is damaged or unsupported: {shown(first[0])}", _DAMAGED) from None


def _numpy_names() -> list[Any]:
    array = np.zeros(0).__reduce__()[0]
    number = np.float64(0).__reduce__()[0]
    folders = ("numpy._core.multiarray", "numpy.core.multiarray")
    return [
        np.ndarray,
        np.dtype,
        *((array, f"{folder}._reconstruct") for folder in folders),
        *((number, f"{folder}.scalar") for folder in folders),
        *{type(np.dtype(code)) for code in "?bhilqBHILQefdFD"},
    ]


def _content(loaded: object, layout: Layout) -> Content:
    if not isinstance(loaded, dict):
        raise Refusal("is damaged", _DAMAGED)
    named = loaded if layout.key is None else loaded[layout.key]
    items: list[tuple[object, object]] = list(dict.items(named))
    tensors = checked_tensors({name: value for name, value in items if isinstance(value, Tensor)})
    card = dict.get(loaded, CARD_KEY)
    if card is not None and not isinstance(card, str):
        raise Refusal(f"has a {shown(CARD_KEY)} entry that is no text", "Ask for an unaltered file")
    extra = _facts(loaded) if layout.format == "backdoorbench" else {}
    return Content(layout.format, tensors, card, extra)


def _facts(loaded: dict[object, object]) -> dict[str, object]:
    """Return what BackdoorBench says about the model; its images and folders are left alone."""
    name, classes, size = (loaded.get(k) for k in ("model_name", "num_classes", "img_size"))
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
    if type(value) is int:
        return value
    return int(value) if isinstance(value, np.integer) else None
