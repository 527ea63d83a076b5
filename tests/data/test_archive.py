import io
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest

from fst_lightning.data import archive
from fst_lightning.data.archive import Header, open_arrays


def read_arrays(path: Path, keys: list[str]) -> dict[str, npt.NDArray[Any]]:
    with open_arrays(path, keys) as arrays:
        return {key: arrays.read(key) for key in keys}


def member(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=True)
    return file.getvalue()


def header(shape: tuple[int, ...], descr: str = "<f8") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"shape": shape, "fortran_order": False, "descr": descr}
    )
    return file.getvalue()


def write(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return path


@pytest.mark.parametrize("compressed", [True, False])
def test_reads_what_numpy_writes(compressed: bool, tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    a, b = np.arange(12.0).reshape(3, 4), np.asfortranarray(np.arange(6).reshape(2, 3))
    (np.savez_compressed if compressed else np.savez)(path, a=a, b=b, c=np.zeros(1))
    found = read_arrays(path, ["a", "b"])
    assert list(found) == ["a", "b"]
    np.testing.assert_array_equal(found["a"], a)
    np.testing.assert_array_equal(found["b"], b)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="found nothing"):
        read_arrays(tmp_path / "gone.npz", ["a"])
    with pytest.raises(FileNotFoundError, match="found a folder"):
        read_arrays(tmp_path, ["a"])


def test_not_an_archive(tmp_path: Path) -> None:
    path = tmp_path / "data.npy"
    np.save(path, np.zeros(3))
    with pytest.raises(ValueError, match="not a NumPy archive"):
        read_arrays(path, ["a"])


def test_missing_keys_list_what_was_found(tmp_path: Path) -> None:
    path = write(tmp_path / "data.npz", images=member(np.zeros(1)), a=member(np.zeros(1)))
    with pytest.raises(ValueError, match=r"no array b\. Expected a, b; found images, a"):
        read_arrays(path, ["a", "b"])


def test_objects_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "data.npz", a=member(np.array([{"x": 1}], dtype=object)))
    with pytest.raises(ValueError, match="`a` holds Python objects"):
        read_arrays(path, ["a"])


@pytest.mark.parametrize("shape", [(2**40,), (2**20, 2**20, 2**20), (2**62, 2**62)])
def test_a_huge_shape_is_refused_before_it_is_allocated(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    path = write(tmp_path / "data.npz", a=header(shape))
    with pytest.raises(ValueError, match=r"GiB of memory, and the limit is 16 GiB"):
        read_arrays(path, ["a"])


def test_the_limit_counts_all_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "data.npz", a=member(np.zeros(100)), b=member(np.zeros(100)))
    monkeypatch.setattr(archive, "MAX_BYTES", 1600)
    read_arrays(path, ["a", "b"])
    monkeypatch.setattr(archive, "MAX_BYTES", 1599)
    with pytest.raises(ValueError, match="limit"):
        read_arrays(path, ["a", "b"])


def test_a_member_beside_the_one_that_was_checked_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a", header((2**30, 2**10)))
        file.writestr("a.npy", member(np.arange(3)))
    assert read_arrays(path, ["a"])["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not numpy",
        member(np.arange(100))[:-8],
        header((-1,)),
        header((2**62, 0, 2**62)),
        b"\x93NUMPY\x03\x00" + b"\x10\x00\x00\x00" + b" " * 16,
        b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535,
    ],
)
def test_damaged_members(content: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / "data.npz", a=content)
    with pytest.raises(ValueError, match=r"Could not read .*data\.npz: "):
        read_arrays(path, ["a"])


def test_a_damaged_stream(tmp_path: Path) -> None:
    path = write(tmp_path / "data.npz", a=member(np.random.default_rng(0).random(1000)))
    content = bytearray(path.read_bytes())
    content[1000:1100] = bytes(100)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="Could not read"):
        read_arrays(path, ["a"])


@pytest.mark.parametrize(("growth", "refused"), [(90, False), (110, True)])
def test_a_file_unpacks_to_100_times_its_length(
    growth: int, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "_ALWAYS_ALLOWED", 0)
    noise = np.random.default_rng(0).integers(0, 256, 50_000, dtype=np.uint8)
    path = tmp_path / "data.npz"
    size = 0
    # Zeros pack a thousandfold, so they add to the file's length as well.
    for _ in range(3):
        array = np.concatenate([noise, np.zeros(size // 2 * 2, np.uint8)]).reshape(-1, 2)
        size = growth * write(path, a=member(array)).stat().st_size - len(noise)
    assert array.size / path.stat().st_size == pytest.approx(growth, rel=0.02)
    if refused:
        with pytest.raises(ValueError, match="is a zip bomb"):
            read_arrays(path, ["a"])
    else:
        assert read_arrays(path, ["a"])["a"].sum() == noise.sum()


@pytest.mark.parametrize("order", ["C", "F"])
def test_pieces_give_the_same_array(
    order: Literal["C", "F"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "_VALUES_AT_A_TIME", 7)
    array = np.asarray(np.random.default_rng(0).random((3, 4, 5)), order=order)
    path = write(tmp_path / "data.npz", a=member(array), b=member(array[:0]))
    with open_arrays(path, ["a", "b"]) as arrays:
        np.testing.assert_array_equal(arrays.read("a"), array)
        halves = arrays.read("a", np.int64, lambda piece: np.rint(piece * 255))
        np.testing.assert_array_equal(halves, np.rint(array * 255))
        assert halves.dtype == np.int64
        assert arrays.read("b").shape == (0, 4, 5)


def test_labels_count_as_they_will_be_held() -> None:
    """A byte becomes eight of them."""
    small = np.dtype(np.int8)
    assert Header((1000,), small).memory == Header((1000, 1), small).memory == 8000
    assert Header((1000, 2, 2), np.dtype(np.uint8)).memory == 4000
    assert Header((1000,), np.dtype(np.float32)).memory == 4000
