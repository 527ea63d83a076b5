"""A disk that is full, or that nobody may write to: a line says so, and nothing is lost."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from fst_lightning.checkpoints import Store, read_checkpoint, write_state
from fst_lightning.pipelines.runtime.last_checkpoint import WholeFiles
from tests.cli.conftest import Command, Outcome

LINES = ("report.enabled=false", "training.max_epochs=2", "hydra.run.dir=run/one")
ONE_REASON = pytest.mark.parametrize("lose_locks", ["ENOLCK"], indirect=True)
"""A command treats all reasons alike: the tests of locks and of the store go through them."""


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """What a full disk does to a process, without one: no file may grow beyond this."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    """A small disk of its own, for tests that may mount one."""
    folder.mkdir(exist_ok=True)
    call = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
    try:
        done = subprocess.run(call, capture_output=True, check=False).returncode
    except FileNotFoundError:
        done = 1
    if done != 0:
        pytest.skip("needs the right to mount")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def check_line(outcome: Outcome, *parts: str) -> None:
    assert outcome.code == 1
    lines = outcome.err.splitlines()
    assert len(lines) <= 2, outcome.err  # the second says where there is more, if there is
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]
    assert not [name for name in outcome.written if "results.json" in name]
    assert not [name for name in outcome.written if name.endswith((".part", ".tmp"))]


def check_whole(folder: Path) -> None:
    """What is there under its final name can be read."""
    store = Store(folder)
    models = list((folder / "models").glob("*"))
    assert len(store.list()) == len(models)
    for model in models:
        read_checkpoint(model / "model.safetensors")
    for file in (folder / "work").glob("*/*.ckpt"):
        torch.load(file, weights_only=True)
    assert not list((folder / "partial").glob("*"))


@pytest.mark.parametrize("size", [0, 1_000, 8_000, 20_000])
def test_a_file_that_does_not_fit(size: int, command: Command) -> None:
    """From the first file of a run, over its checkpoints, to the purified network."""
    with files_of_at_most(size):
        failed = command(*LINES)
    check_line(failed, os.strerror(errno.EFBIG), "Make room there", "paths.store=")
    check_whole(failed.folder / "store")
    assert command(*LINES, "resume=true").code == 0


@pytest.mark.parametrize("place", ["store", "run"])
@pytest.mark.parametrize("kilobytes", [8, 64])
def test_a_full_disk(place: str, kilobytes: int, tmp_path: Path, command: Command) -> None:
    with mounted(tmp_path / place, f"size={kilobytes}k"):
        failed = command(*LINES)
        check_line(failed, os.strerror(errno.ENOSPC), "Make room there")
        check_whole(tmp_path / "store")
        subprocess.run(["mount", "-o", "remount,size=10m", tmp_path / place], check=True)
        assert command(*LINES, "resume=true").code == 0


def test_a_run_folder_that_is_read_only(tmp_path: Path, command: Command) -> None:
    with mounted(tmp_path / "run", "ro"):
        failed = command(*LINES)
        check_line(failed, os.strerror(errno.EROFS), "Make it writable", "hydra.run.dir=")
    assert not (tmp_path / "store").exists()


def test_a_store_that_is_read_only_and_empty(tmp_path: Path, command: Command) -> None:
    with mounted(tmp_path / "store", "ro"):
        failed = command(*LINES)
        check_line(failed, "the store cannot be written", "paths.store=")


@ONE_REASON
def test_a_disk_without_locks(
    lose_locks: Callable[[], str], command: Command, tmp_path: Path
) -> None:
    """Nothing is trained that two processes could train at a time."""
    reason = lose_locks()
    failed = command(*LINES)
    check_line(failed, "no file locks", "store/locks", reason, "paths.store=")
    assert not list((tmp_path / "store").rglob("*.*"))


@ONE_REASON
def test_a_disk_without_locks_serves_what_it_holds(
    lose_locks: Callable[[], str], command: Command
) -> None:
    """A sweep runs there, too; the lock of a job only waits for one that has outlived its sweep."""
    assert command(*LINES, task="train").code == 0
    lose_locks()
    swept = command("-m", *LINES[:2], "defense=ft,lp", "hydra.sweep.dir=sweep")
    assert (swept.code, swept.err) == (0, "")
    assert {f"sweep/{number}/results.json" for number in (0, 1)} <= swept.written


def test_weights_say_what_the_system_says(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_state(path, {"a": torch.zeros(2)})
    before = path.read_bytes()
    with files_of_at_most(1_000), pytest.raises(OSError, match=r"a\.safetensors") as caught:
        write_state(path, {"a": torch.zeros(10_000)})
    assert caught.value.errno == errno.EFBIG
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_replaces_the_one_before_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    files = WholeFiles()
    files.save_checkpoint({"epoch": 1}, path)
    with files_of_at_most(1_000), pytest.raises(OSError, match="last") as caught:
        files.save_checkpoint({"epoch": 2, "weights": torch.zeros(10_000)}, path)
    assert caught.value.errno == errno.EFBIG
    assert torch.load(path, weights_only=True) == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [path]
    files.save_checkpoint({"epoch": 3}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 3}
    neighbor = tmp_path / "neighbor"
    neighbor.touch()
    assert path.stat().st_mode == neighbor.stat().st_mode


def test_a_line_is_all_that_is_left_where_nothing_can_be_written(
    tmp_path: Path,
    command: Command,
) -> None:
    """The reason is said, although the folder takes no note of it."""
    with files_of_at_most(0):
        failed = command("attack.poison_ratio=2", "hydra.run.dir=run", "hydra.output_subdir=null")
    error, hint = failed.err.splitlines()
    assert "poison_ratio" in error
    assert "no details in" in hint
    assert not list(tmp_path.rglob("failure.json"))
