from __future__ import annotations

from pathlib import Path

import pytest

from fst_lightning.checkpoints import SCHEMA, Store
from fst_lightning.checkpoints.__main__ import main


def _keep(root: Path, seed: int, num_bytes: int) -> str:
    store = Store(root)
    description: dict[str, object] = {
        "seed": seed,
        "attack": {"name": "blended"},
        "data": {"name": "digits"},
        "model": {"name": "small_resnet"},
    }
    key = store.key(description)
    store.keep(key, description, lambda folder: _write(folder / "model.safetensors", num_bytes))
    return key


def _write(file: Path, num_bytes: int) -> None:
    file.write_bytes(bytes(num_bytes))


def test_lists_what_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = [_keep(tmp_path, seed, 2_000_000) for seed in (0, 1)]
    assert main(["--store", str(tmp_path), "list"]) == 0
    printed = capsys.readouterr().out
    assert all(key in printed for key in keys)
    assert "blended" in printed
    assert "2.0" in printed


def test_says_that_a_store_is_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--store", str(tmp_path / "none"), "list"]) == 0
    assert "no model" in capsys.readouterr().out


def test_prunes_by_size_and_by_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = [_keep(tmp_path, seed, 2_000_000) for seed in range(3)]
    assert main(["--store", str(tmp_path), "prune", keys[2]]) == 0
    assert [entry.key for entry in Store(tmp_path).list()] == keys[:2]
    assert main(["--store", str(tmp_path), "prune", "--keep-gb", "0.003"]) == 0
    assert [entry.key for entry in Store(tmp_path).list()] == keys[1:2]
    assert keys[0] in capsys.readouterr().out


def test_refuses_what_is_no_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--store", str(tmp_path), "prune", "../elsewhere"]) == 1
    assert "error" in capsys.readouterr().err


def test_lists_and_prunes_what_is_stale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = _keep(tmp_path, 0, 10)  # says no schema
    store = Store(tmp_path)
    description: dict[str, object] = {"schema": SCHEMA, "seed": 1}
    fresh = store.key(description)
    store.keep(fresh, description, lambda folder: _write(folder / "model.safetensors", 10))
    assert main(["--store", str(tmp_path), "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {key: "stale" in line for line in lines for key in line.split()[:1]} == {
        "key": False,
        key: True,
        fresh: False,
    }
    assert main(["--store", str(tmp_path), "prune", "--stale"]) == 0
    assert [entry.key for entry in store.list()] == [fresh]
