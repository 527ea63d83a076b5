from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import Timeout

from fst_lightning.locks import NoLocksError, file_lock


def test_no_locks_are_an_error(lose_locks: Callable[[], str], tmp_path: Path) -> None:
    reason = lose_locks()
    with pytest.raises(NoLocksError) as caught:
        file_lock(tmp_path / "a.lock")
    assert str(tmp_path) in str(caught.value)
    assert reason in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with file_lock(path):
        second = file_lock(path)  # to ask is not to hold
        with pytest.raises(Timeout):
            second.acquire(timeout=0)
    with second.acquire(timeout=0), path.open("rb") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it is the system's


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        file_lock(tmp_path / "none" / "a.lock")
