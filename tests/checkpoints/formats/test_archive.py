"""Zip files at, and just beyond, what is allowed; tests/hostile has more, as whole files."""

from __future__ import annotations

import io
import re
import struct
import zipfile
from collections.abc import Callable

import pytest

from fst_lightning.checkpoints.errors import Refusal
from fst_lightning.checkpoints.formats import archive
from fst_lightning.checkpoints.formats.archive import check_directory, open_archive

PICKLE = b"\x80\x02}."


def zipped(*entries: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as made:
        for name, content in entries or (("archive/data.pkl", PICKLE), ("archive/data/0", b"abcd")):
            made.writestr(name, content)
    return file.getvalue()


def refused(data: bytes, match: str) -> None:
    with pytest.raises(Refusal) as caught:
        open_archive(io.BytesIO(data), len(data))
    assert re.search(match, caught.value.found), caught.value.found


def test_what_an_archive_gives() -> None:
    """Independent check: the bytes that went in."""
    data = zipped()
    opened = open_archive(io.BytesIO(data), len(data))
    assert (opened.pickle, opened.order, list(opened.data)) == (PICKLE, b"little", ["0"])
    assert bytes(opened.read("0").tolist()) == b"abcd"


def test_the_folder_may_have_any_name_and_is_one() -> None:
    data = zipped(("my net/data.pkl", PICKLE), ("my net/data/0", b"x"))
    assert list(open_archive(io.BytesIO(data), len(data)).data) == ["0"]
    refused(zipped(("a/data.pkl", PICKLE), ("ab/data/0", b"x")), "ambiguous entry names")
    refused(zipped(("a/data.pkl", PICKLE), ("b/data/0", b"x")), "ambiguous entry names")
    refused(zipped(("a/data.pkl", PICKLE), ("a/DATA.PKL", PICKLE)), "ambiguous entry names")
    refused(zipped(("a/data.pkl", PICKLE), ("a/b\\c", b"x")), "ambiguous entry names")
    refused(zipped(("data.pkl", PICKLE)), "not one that torch.save wrote")
    refused(zipped(("a/model.pkl", PICKLE)), "not one that torch.save wrote")
    refused(zipped(("a/data.pkl", PICKLE), ("a/code/x.py", b"x")), "TorchScript")
    refused(zipped(("a/data.pkl", PICKLE), ("a/constants.pkl", b"x")), "TorchScript")


def with_zip64(data: bytes, **changes: int) -> bytes:
    """Put a 64-bit end record before the end record, as for more than 65,535 entries."""
    entries, length, start = struct.unpack("<H2L", data[-12:-2])
    end = len(data) - 22
    wanted = {"entries": entries, "length": length, "start": start, "place": end} | changes
    record = struct.pack(
        "<4sQ2H2L4Q",
        *(b"PK\x06\x06", 44, 45, 45, 0, 0),
        *(wanted["entries"], wanted["entries"], wanted["length"], wanted["start"]),
    )
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, wanted["place"], 1)
    return data[:end] + record + locator + data[end:]


def test_64_bit_ends() -> None:
    data = with_zip64(zipped())
    check_directory(io.BytesIO(data), len(data))
    assert open_archive(io.BytesIO(data), len(data)).pickle == PICKLE
    plain = zipped()
    for change in ({"place": len(plain) - 21}, {"place": 0}):
        refused(with_zip64(plain, **change), "end records do not fit")
    damaged = data.replace(b"PK\x06\x06", b"PK\x06\x05")
    refused(damaged, "end records do not fit")
    for change in ({"start": 1}, {"length": 1}):
        refused(with_zip64(plain, **change), "bytes lie where a zip file has none")


def test_the_list_of_entries_is_bounded_in_each_way(monkeypatch: pytest.MonkeyPatch) -> None:
    data = zipped()
    length = struct.unpack("<L", data[-10:-6])[0]
    monkeypatch.setattr(archive, "_ENTRY_LIMIT", 2)
    monkeypatch.setattr(archive, "_DIRECTORY_LIMIT", length)
    check_directory(io.BytesIO(data), len(data))
    monkeypatch.setattr(archive, "_ENTRY_LIMIT", 1)
    refused(data, "a list of 2 entries")
    monkeypatch.setattr(archive, "_ENTRY_LIMIT", 2)
    monkeypatch.setattr(archive, "_DIRECTORY_LIMIT", length - 1)
    refused(data, "a list of 2 entries")


def test_no_byte_lies_outside_of_the_entries() -> None:
    data = zipped()
    first = data.index(b"PK\x03\x04", 4)
    directory = data.index(b"PK\x01\x02")
    refused(data + b"x", "no end record")
    refused(data[:-1], "no end record")
    refused(data[:20], "no end record")
    refused(b"x" + data, "bytes lie where")
    commented = data[:-2] + b"\x01\x00x"
    refused(commented, "no end record")
    refused(data[:-2] + b"\x01\x00", "bytes lie where")

    def moved(place: int, what: bytes, offset: Callable[[int], int]) -> bytes:
        """Insert bytes, and correct the places that the list names."""
        new = bytearray(data[:place] + what + data[place:])
        end = len(new) - 22
        start = struct.unpack_from("<L", new, end + 16)[0] + len(what)
        struct.pack_into("<L", new, end + 16, start)
        at = start
        while new[at : at + 4] == b"PK\x01\x02":
            name, extra, comment = struct.unpack_from("<3H", new, at + 28)
            struct.pack_into("<L", new, at + 42, offset(struct.unpack_from("<L", new, at + 42)[0]))
            at += 46 + name + extra + comment
        return bytes(new)

    refused(moved(0, b"x", lambda old: old + 1), "bytes lie between its entries")
    refused(moved(first, b"x", lambda old: old + (old > 0)), "bytes lie between its entries")
    refused(moved(directory, b"x", lambda old: old), "bytes lie between its entries")


def test_entries_whose_length_follows_them() -> None:
    """As `torch.save` writes to a stream: a checksum and lengths come after the data."""

    class Stream(io.RawIOBase):
        def __init__(self) -> None:
            self.data = b""

        def writable(self) -> bool:
            return True

        def write(self, part: bytes) -> int:  # type: ignore[override]
            self.data += bytes(part)
            return len(part)

    for large in (False, True):
        stream = Stream()
        with zipfile.ZipFile(stream, "w") as made:
            for name, content in (("a/data.pkl", PICKLE), ("a/data/0", b"abcd")):
                with made.open(name, "w", force_zip64=large) as entry:
                    entry.write(content)
        data = stream.data
        opened = open_archive(io.BytesIO(data), len(data))
        assert (opened.pickle, bytes(opened.read("0").tolist())) == (PICKLE, b"abcd")
        refused(data.replace(b"PK\x07\x08", b"PK\x07\x09", 1), "an entry has no end")


def test_only_plain_and_deflated_entries() -> None:
    packed = zipped(method=zipfile.ZIP_DEFLATED)
    assert open_archive(io.BytesIO(packed), len(packed)).pickle == PICKLE
    refused(zipped(method=zipfile.ZIP_LZMA), "unusually packed entry `archive/data.pkl`")
    encrypted = bytearray(zipped())
    encrypted[encrypted.index(b"PK\x01\x02") + 8] |= 1
    refused(bytes(encrypted), "encrypted or unusually packed")


def test_what_a_file_may_unpack_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred times for an entry, ten times for the file, and 64 MB in any case."""
    content = bytes(100_000)
    entries = [("a/data.pkl", PICKLE), ("a/data/0", content)]
    data = zipped(*entries, method=zipfile.ZIP_DEFLATED)
    refused(data, "zip bomb: `a/data/0` unpacks to 100,000 bytes")
    monkeypatch.setattr(archive, "_RATIO_LIMIT", 10_000)
    total = len(content) + len(PICKLE)
    assert len(open_archive(io.BytesIO(data), len(data)).data) == 1
    monkeypatch.setattr(archive, "_ALWAYS_ALLOWED", total)
    open_archive(io.BytesIO(data), len(data))
    monkeypatch.setattr(archive, "_ALWAYS_ALLOWED", total - 1)
    refused(data, f"zip bomb: {len(data):,} bytes unpack to {total:,} bytes")
    monkeypatch.setattr(archive, "_GROWTH_LIMIT", total / len(data))
    open_archive(io.BytesIO(data), len(data))
    monkeypatch.setattr(archive, "TOTAL_LIMIT", total - 1)
    refused(data, "zip bomb")


def test_the_allowances() -> None:
    """The figures of docs/security.md."""
    assert archive._ALWAYS_ALLOWED == 64 * 2**20
    assert (archive._RATIO_LIMIT, archive._GROWTH_LIMIT) == (100, 10)
    assert archive.TOTAL_LIMIT == 20 * 2**30


def test_the_longest_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    data = zipped()
    monkeypatch.setattr(archive, "PICKLE_LIMIT", len(PICKLE))
    open_archive(io.BytesIO(data), len(data))
    monkeypatch.setattr(archive, "PICKLE_LIMIT", len(PICKLE) - 1)
    refused(data, "holds a pickle of 4 bytes")


def test_a_wrong_checksum() -> None:
    data = zipped()
    opened_data = data.replace(b"abcd", b"abce")
    opened = open_archive(io.BytesIO(opened_data), len(data))
    with pytest.raises(Refusal, match="damaged"):
        opened.read("0")
