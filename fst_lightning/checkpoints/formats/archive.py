"""Check a zip file, such as `torch.save` writes, and read its parts."""

from __future__ import annotations

import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import BinaryIO

import torch
from torch import Tensor

from fst_lightning.checkpoints.errors import STATE_DICT_ADVICE, Refusal, shown
from fst_lightning.checkpoints.formats.pickle_scan import PICKLE_LIMIT

__all__ = ["TOTAL_LIMIT", "Archive", "check_directory", "open_archive"]

TOTAL_LIMIT = 20 * 2**30
"""Most bytes of a checkpoint, packed or unpacked."""

_ENTRY_LIMIT = 200_000
# Python makes an object of every 46 bytes, however many entries are announced.
_DIRECTORY_LIMIT = 16 * 2**20
_RATIO_LIMIT = 100
_GROWTH_LIMIT = 10
_ALWAYS_ALLOWED = 64 * 2**20
_CHUNK = 2**20
_DAMAGED = "Copy or download the file again"


@dataclass(frozen=True, slots=True)
class Archive:
    """The pickle of a torch archive, and the entries with its tensors' data by key."""

    file: zipfile.ZipFile
    pickle: bytes
    order: bytes
    data: dict[str, zipfile.ZipInfo]

    def read(self, key: str) -> Tensor:
        """Read the data of a tensor, as bytes, and check their checksum.

        Raises:
            Refusal: If the data are damaged.
        """
        return _read(self.file, self.data[key])


def open_archive(file: BinaryIO, size: int) -> Archive:
    """Read the pickle of a torch archive after checking the archive's structure.

    The structure must be the plain one that `torch.save` writes, so that every reader of zip files
    sees the same entries: no repeated names (upper and lower case count as equal), no bytes before,
    between or after the entries, nothing after the end record.

    Args:
        file: The open file.
        size: Its length in bytes.

    Raises:
        Refusal: If the archive is damaged, ambiguous, a zip bomb or none of torch's.
    """
    check_directory(file, size)
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError) as error:
        raise _damaged(error) from None
    folder = _check_entries(archive.infolist(), size)
    _check_gaps(file, archive.infolist(), archive.start_dir)
    entries = {entry.filename.removeprefix(folder): entry for entry in archive.infolist()}
    small = {}
    for name in ("data.pkl", "byteorder"):
        if name in entries:
            if entries[name].file_size > PICKLE_LIMIT:
                raise Refusal(
                    f"holds a pickle of {entries[name].file_size:,} bytes",
                    f"Ask for the state_dict alone; {PICKLE_LIMIT:,} bytes are the limit",
                )
            small[name] = _read(archive, entries[name]).numpy().tobytes()
    data = {
        name.removeprefix("data/"): entry
        for name, entry in entries.items()
        if name.startswith("data/")
    }
    return Archive(archive, small["data.pkl"], small.get("byteorder", b"little"), data)


def check_directory(file: BinaryIO, size: int) -> None:
    """Look at the end of a zip file, where its list of entries is announced.

    Args:
        file: The open file.
        size: Its length in bytes.

    Raises:
        Refusal: If it is damaged, bytes lie where a plain zip file has none, or the list is too
            long.
    """
    file.seek(max(0, size - 22))
    end = file.read(22)
    if len(end) < 22 or end[:4] != b"PK\x05\x06":
        raise Refusal("is cut short or damaged: the zip file has no end record", _DAMAGED)
    _, _, _, _, entries, length, start, comment = struct.unpack("<4s4H2LH", end)
    directory_end = size - 22
    file.seek(max(0, size - 42))
    locator = file.read(20)
    if size >= 98 and locator[:4] == b"PK\x06\x07":
        directory_end = struct.unpack("<4sLQL", locator)[2]
        if directory_end != size - 98:
            raise Refusal("is damaged: the zip file's end records do not fit together", _DAMAGED)
        file.seek(directory_end)
        record = struct.unpack("<4sQ2H2L4Q", file.read(56))
        if record[0] != b"PK\x06\x06":
            raise Refusal("is damaged: the zip file's end records do not fit together", _DAMAGED)
        entries, length, start = record[7:]
    if comment or start + length != directory_end:
        raise Refusal("is damaged or altered: bytes lie where a zip file has none", _DAMAGED)
    if entries > _ENTRY_LIMIT or length > _DIRECTORY_LIMIT:
        raise Refusal(
            f"is a zip file with a list of {entries:,} entries in {length:,} bytes",
            f"{_ENTRY_LIMIT:,} entries in {_DIRECTORY_LIMIT:,} bytes are the limit",
        )
    file.seek(0)


def _check_entries(entries: list[zipfile.ZipInfo], size: int) -> str:
    names = [entry.filename for entry in entries]
    if not names or "data.pkl" not in {name.partition("/")[2] for name in names}:
        raise Refusal(
            "is a zip file, but not one that torch.save wrote",
            "Give a safetensors file, a state_dict, a Lightning .ckpt or an attack_result.pt",
        )
    folder = names[0].partition("/")[0] + "/"
    altered = next(
        (e.filename for e in entries if e.filename != e.orig_filename or "\\" in e.filename), None
    ) or next((name for name in names if not name.startswith(folder)), None)
    if altered is not None or len({name.casefold() for name in names}) != len(names):
        raise Refusal("is a zip file with ambiguous entry names", "Ask for an unaltered file")
    if folder + "constants.pkl" in names or any(n.startswith(folder + "code/") for n in names):
        raise Refusal(
            "holds a TorchScript program, which is code",
            STATE_DICT_ADVICE,
        )
    for entry in entries:
        if entry.flag_bits & 0x1 or entry.compress_type not in (
            zipfile.ZIP_STORED,
            zipfile.ZIP_DEFLATED,
        ):
            raise Refusal(
                f"has the encrypted or unusually packed entry {shown(entry.filename)}",
                "Ask for a file as torch.save writes it",
            )
        if entry.file_size > _RATIO_LIMIT * max(entry.compress_size, 1):
            raise Refusal(
                f"is a zip bomb: {shown(entry.filename)} unpacks to {entry.file_size:,} bytes",
                "Do not unpack it",
            )
    packed = sum(entry.compress_size for entry in entries)
    total = sum(entry.file_size for entry in entries)
    if packed > size or total > min(TOTAL_LIMIT, max(_ALWAYS_ALLOWED, _GROWTH_LIMIT * size)):
        raise Refusal(
            f"is a zip bomb: {size:,} bytes unpack to {total:,} bytes", "Do not unpack it"
        )
    return folder


def _check_gaps(file: BinaryIO, entries: list[zipfile.ZipInfo], directory: int) -> None:
    """Refuse bytes that belong to no entry: another reader may find entries in them."""
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        file.seek(entry.header_offset)
        header = file.read(30)
        if entry.header_offset != end or len(header) < 30:
            raise Refusal("is damaged or altered: bytes lie between its entries", _DAMAGED)
        name, extra = struct.unpack("<2H", header[26:])
        end += 30 + name + extra + entry.compress_size
        if entry.flag_bits & 0x8:  # a checksum and two lengths follow, of 4 or 8 bytes each
            file.seek(end)
            after = file.read(24)
            large = after[16:20] not in (b"PK\x03\x04", b"PK\x01\x02")
            end += 24 if large else 16
            if after[:4] != b"PK\x07\x08":
                raise Refusal("is damaged or altered: an entry has no end", _DAMAGED)
    if end != directory:
        raise Refusal("is damaged or altered: bytes lie between its entries", _DAMAGED)


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Tensor:
    content = torch.empty(entry.file_size, dtype=torch.uint8)
    into, length = memoryview(content.numpy().data), 0
    try:
        with archive.open(entry) as stream:
            # to the end, where zipfile compares the checksum
            while part := stream.read(_CHUNK):
                into[length : length + len(part)] = part
                length += len(part)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, zlib.error) as error:
        raise _damaged(error) from None
    if length != entry.file_size:
        raise Refusal(f"is damaged: {shown(entry.filename)} is incomplete", _DAMAGED)
    return content


def _damaged(error: Exception) -> Refusal:
    return Refusal(f"is damaged: {shown(error)}", _DAMAGED)
