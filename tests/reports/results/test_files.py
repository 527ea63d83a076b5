import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fst_lightning.reports import read_results, write_json, write_text
from tests.reports.example import example

plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(), max_size=8),
    lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=4), v, max_size=4),
    max_leaves=10,
)


@settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(plain_values)
def test_json_comes_back_as_it_was(tmp_path: Path, value: object) -> None:
    path = tmp_path / "value.json"
    write_json(path, value)
    assert json.loads(path.read_bytes().decode("utf-8")) == value


def test_is_readable_text(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "Größe", "values": [1]})
    assert (tmp_path / "a.json").read_text("utf-8") == (
        '{\n "name": "Größe",\n "values": [\n  1\n ]\n}\n'
    )


def test_keeps_a_file_name_that_is_no_utf8(tmp_path: Path) -> None:
    name = b"model-\xff.pt".decode("utf-8", "surrogateescape")
    write_json(tmp_path / "a.json", {"file": name})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"file": name}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_leaves_the_old_file(tmp_path: Path, value: float) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"new": value})
    assert json.loads(path.read_text()) == {"old": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    write_text(path, "old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_the_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    write_text(tmp_path / "deep" / "a.txt", "x")
    (tmp_path / "b.txt").write_text("x")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("deep/a.txt", "b.txt")]
    assert modes[0] == modes[1]


def test_reads_what_was_written(tmp_path: Path) -> None:
    results = example()
    write_json(tmp_path / "results.json", results)
    assert read_results(tmp_path / "results.json") == (results, None)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", "is no JSON"),
        (b"{", "is no JSON"),
        (b"\xff\xfe", "is no UTF-8 text"),
        (b"[]", "is not valid: Expected `results` to be object"),
        (b'{"schema_version": NaN}', "NaN is no JSON number"),
        (b'{"schema_version": 2}', "is not valid: Expected `schema_version` to be 1"),
        (b"[" * 200_000, "is not valid: too deeply nested"),
        (b"9" * 10_000, "is not valid"),
    ],
)
def test_a_broken_file_is_an_answer(tmp_path: Path, content: bytes, error: str) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(content)
    reading = read_results(path)
    assert reading.results is None
    assert reading.error is not None
    assert error in reading.error
    assert "\n" not in reading.error


def test_a_missing_file_is_an_answer(tmp_path: Path) -> None:
    assert read_results(tmp_path / "none.json").error == (f"cannot be read: {os.strerror(2)}")


def test_reading_and_tabulating_needs_no_torch() -> None:
    code = "import sys, fst_lightning.reports; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
