import os
from pathlib import Path

import pytest

from fst_lightning.text_files import open_text, read_text


def test_reads_regular_files_and_links_to_them(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("Größe\r\n", encoding="utf-8", newline="")
    (tmp_path / "link").symlink_to("a")
    assert read_text(tmp_path / "link") == "Größe\n"
    with open_text(tmp_path / "a", newline="") as file:
        assert file.read() == "Größe\r\n"


def test_nothing_else_is_read(tmp_path: Path) -> None:
    """A pipe without a writer would block, and a device would never end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "bad").write_bytes(b"\xff")
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir())) if descriptors.exists() else 0
    for name in ("pipe", "zero", "."):
        with pytest.raises(OSError, match="no regular file"):
            read_text(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "gone")
    with pytest.raises(UnicodeDecodeError):
        read_text(tmp_path / "bad")
    if before:
        assert len(list(descriptors.iterdir())) == before


def test_the_length_is_bounded(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("x" * 10, encoding="utf-8")
    assert read_text(file, 10) == "x" * 10
    with pytest.raises(OSError, match="10 bytes, and 9 are the limit"):
        read_text(file, 9)
