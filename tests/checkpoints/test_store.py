from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fst_lightning.checkpoints import SCHEMA, Store, StoreError
from tests.forks import forks

DESCRIPTION: dict[str, object] = {"data": "digits", "seed": 0, "attack": {"name": "badnets"}}


def fill(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"x" * 100)


def test_key() -> None:
    store = Store("anywhere")
    key = store.key(DESCRIPTION)
    assert len(key) == 16
    assert int(key, 16) >= 0
    assert key == store.key(dict(reversed(DESCRIPTION.items())))
    assert store.key({"lr": 1, "b": (1, 2)}) == store.key({"b": [1, 2.0], "lr": 1.0})
    different: list[dict[str, object]] = [
        {},
        {"a": 1},
        {"a": True},
        {"a": "1"},
        {"a": None},
        {"a": [1]},
        {"a": 1.5},
    ]
    assert len({store.key(d) for d in different}) == len(different)
    # pinned: another key for the same description would train every model again
    assert store.key({"seed": 0}) == "bd0488843468e63c"


@pytest.mark.parametrize("value", [float("nan"), Path("a"), {1: 2}, {"a", "b"}, b"x", [object()]])
def test_key_of_anything_else(value: object) -> None:
    with pytest.raises(ValueError, match=r"description\.a"):
        Store("anywhere").key({"a": value})


def test_keep_and_find(tmp_path: Path) -> None:
    store = Store(tmp_path / "new" / "store")
    key = store.key(DESCRIPTION)
    assert store.entry(key) is None
    assert store.list() == []
    assert store.prune() == []
    folder = store.keep(key, DESCRIPTION, fill)
    assert folder == store.entry(key) == tmp_path / "new" / "store" / "models" / key
    assert (folder / "model.safetensors").read_bytes() == b"x" * 100
    assert folder == store.keep(key, DESCRIPTION, lambda _: pytest.fail("is there already"))
    (entry,) = Store(store.root).list()
    assert entry.key == key
    assert entry.description == DESCRIPTION
    assert entry.bytes == sum(f.stat().st_size for f in folder.iterdir())
    assert timedelta(0) <= datetime.now(UTC) - entry.created < timedelta(minutes=1)
    assert list((store.root / "partial").iterdir()) == []


def test_keep_is_all_or_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    key = store.key(DESCRIPTION)

    def fails(folder: Path) -> None:
        fill(folder)
        assert store.entry(key) is None
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        store.keep(key, DESCRIPTION, fails)
    assert store.entry(key) is None
    assert store.list() == []
    assert list((tmp_path / "partial").iterdir()) == []
    with pytest.raises(ValueError, match="made of the description"):
        store.keep("0" * 16, DESCRIPTION, fill)


def test_an_incomplete_entry_is_replaced(tmp_path: Path) -> None:
    store = Store(tmp_path)
    key = store.key(DESCRIPTION)
    (tmp_path / "models" / key).mkdir(parents=True)
    (tmp_path / "models" / key / "model.safetensors").touch()
    assert store.entry(key) is None
    folder = store.keep(key, DESCRIPTION, fill)
    assert (folder / "model.safetensors").stat().st_size == 100
    store.prune()
    assert list((tmp_path / "partial").iterdir()) == []


def test_foreign_files_are_passed_over(tmp_path: Path) -> None:
    store = Store(tmp_path)
    key = store.key(DESCRIPTION)
    folder = store.keep(key, DESCRIPTION, fill)
    models = tmp_path / "models"
    (models / ".DS_Store").touch()
    (models / "notes").mkdir()
    for number, text in enumerate(["", "[]", "{}", "[" * 100_000, '{"key": 3}', "null"]):
        other = models / f"{number:016x}"
        other.mkdir()
        (other / "entry.json").write_text(text)
    (models / ("b" * 16)).symlink_to(folder)
    (models / ("c" * 16)).mkdir()
    facts = json.loads((folder / "entry.json").read_text())
    (models / ("c" * 16) / "entry.json").write_text(json.dumps(facts))
    assert [entry.key for entry in store.list()] == [key]
    assert store.prune(keep_bytes=0) == [key]
    assert (models / "notes").is_dir()


@pytest.mark.parametrize("key", ["", "../../etc", "A" * 16, "0" * 15, "0" * 17, "0" * 16 + "\n"])
def test_keys_are_no_paths(tmp_path: Path, key: str) -> None:
    store = Store(tmp_path)
    for use in (store.entry, store.work, store.clear_work, lambda k: store.prune(keys=[k])):
        with pytest.raises(ValueError, match="16 hexadecimal digits"):
            use(key)
    with pytest.raises(ValueError, match="16 hexadecimal digits"), store.lock(key):
        pass


def backdate(store: Store, key: str, days: float) -> None:
    facts = store.root / "models" / key / "entry.json"
    values = json.loads(facts.read_text())
    before = datetime.now(UTC) - timedelta(days=days)
    values["created"] = before.isoformat()
    facts.write_text(json.dumps(values, indent=1))
    os.utime(facts, (before.timestamp(), before.timestamp()))


def test_prune(tmp_path: Path) -> None:
    store = Store(tmp_path)
    keys = [store.key({"seed": seed}) for seed in range(4)]
    for seed, key in enumerate(keys):
        store.keep(key, {"seed": seed}, fill)
        backdate(store, key, days=10 - seed)
        (store.work(key) / "last.ckpt").touch()
    assert [entry.key for entry in store.list()] == keys
    assert store.prune() == []
    assert store.prune(keys=[keys[2], "0" * 16]) == [keys[2]]
    assert not (tmp_path / "work" / keys[2]).exists()
    assert store.prune(older_than_days=9.5) == [keys[0]]
    assert (tmp_path / "work" / keys[0]).exists()  # touched just now
    assert store.prune(keep_bytes=max(entry.bytes for entry in store.list())) == [keys[1]]
    assert [entry.key for entry in store.list()] == [keys[3]]
    long_ago = time.time() - 20 * 86_400
    for name in ("last.ckpt", "."):
        os.utime(tmp_path / "work" / keys[0] / name, (long_ago, long_ago))
    store.prune(older_than_days=15)
    assert not (tmp_path / "work" / keys[0]).exists()
    assert (tmp_path / "work" / keys[3]).exists()
    for number in (-1, float("nan")):
        with pytest.raises(ValueError, match="older_than_days"):
            store.prune(older_than_days=number)


def kept(root: Path, count: int, limit: float | None = None) -> tuple[Store, list[str]]:
    """A store with entries of about 200 bytes, the first one used the longest time ago."""
    store = Store(root)
    keys = [store.key({"seed": seed}) for seed in range(count)]
    for seed, key in enumerate(keys):
        store.keep(key, {"seed": seed}, fill)
        backdate(store, key, days=100 - seed)
    return Store(root, limit), keys


def listed(store: Store) -> set[str]:
    return {entry.key for entry in store.list()}


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    store, keys = kept(tmp_path, 4)
    use = store.use(keys[0])
    assert use is not None
    assert use.path == store.entry(keys[0])
    use.release()
    entries = {entry.key: entry for entry in store.list()}
    assert datetime.now(UTC) - entries[keys[0]].used < timedelta(minutes=1)
    assert datetime.now(UTC) - entries[keys[0]].created > timedelta(days=99)
    room = 2 * max(entry.bytes for entry in entries.values())
    assert store.prune(keep_bytes=room) == [keys[1], keys[2]]
    assert listed(store) == {keys[0], keys[3]}


def test_a_clock_that_was_ahead(tmp_path: Path) -> None:
    """What it has stamped is not older than new, stays in its order, and ages from now on."""
    store, keys = kept(tmp_path, 4)
    for key, days in zip(keys[:3], (-900, -1000, -1e6), strict=True):
        backdate(store, key, days)
    assert store.prune(older_than_days=0) == [keys[3]]
    for entry in store.list():
        assert timedelta(0) <= datetime.now(UTC) - entry.created < timedelta(minutes=1)
        assert timedelta(0) <= datetime.now(UTC) - entry.used < timedelta(minutes=1)
    size = max(entry.bytes for entry in store.list())
    assert store.prune(keep_bytes=3 * size) == []
    made = store.key(DESCRIPTION)
    store.keep(made, DESCRIPTION, fill)
    assert store.prune(keep_bytes=2.5 * size) == [keys[0], keys[1]]
    assert store.prune(keep_bytes=1.5 * size) == [keys[2]]
    assert listed(store) == {made}


def test_a_clock_that_is_set_back(tmp_path: Path) -> None:
    """What is made then has the earliest dates of all, and outlives what was there before."""
    store, keys = kept(tmp_path, 3)
    for key in keys:
        backdate(store, key, days=-365 - keys.index(key))
    size = max(entry.bytes for entry in store.list())
    use = store.use(keys[1])
    assert use is not None
    made = []
    for seed in (10, 11, 12):
        made.append(store.key({"seed": seed}))
        Store(tmp_path, limit_bytes=4.5 * size).keep(made[-1], {"seed": seed}, fill)
    assert listed(store) == {keys[1], *made}
    use.release()


def use_until_killed(root: Path, key: str, started: Path) -> None:
    use = Store(root).use(key)
    started.touch()
    time.sleep(600)
    assert use is not None


def test_what_is_used_stays(tmp_path: Path) -> None:
    """By this process or another; any number may use it, and a dead one does not."""
    store, keys = kept(tmp_path, 3)
    uses = [store.use(keys[0]), Store(tmp_path).use(keys[0])]
    assert all(uses)
    started = tmp_path / "started"
    child = forks().Process(target=use_until_killed, args=(tmp_path, keys[1], started))
    child.start()
    while not started.exists():
        assert child.is_alive()
        time.sleep(0.01)
    assert store.prune(keep_bytes=0) == [keys[2]]
    assert store.prune(keys=keys, older_than_days=0) == []
    child.kill()
    child.join()
    assert store.prune(keep_bytes=0) == [keys[1]]
    for use in uses:
        assert use is not None
        assert (use.path / "model.safetensors").read_bytes() == b"x" * 100
    del use, uses
    assert store.prune(keep_bytes=0) == [keys[0]]
    assert store.use(keys[0]) is None


def test_a_limit_is_kept_to(tmp_path: Path) -> None:
    """But for the one just made, and what is in use."""
    _, keys = kept(tmp_path, 3)
    size = max(entry.bytes for entry in Store(tmp_path).list())
    store = Store(tmp_path, limit_bytes=2.5 * size)
    use = store.use(keys[0])
    new = store.key(DESCRIPTION)
    store.keep(new, DESCRIPTION, fill)
    assert listed(store) == {keys[0], new}
    assert use is not None
    use.release()
    other = store.key({"seed": 99})
    Store(tmp_path, limit_bytes=0).keep(other, {"seed": 99}, fill)
    assert listed(store) == {other}
    for limit in (-1, float("nan")):
        with pytest.raises(ValueError, match="limit_bytes"):
            Store(tmp_path, limit_bytes=limit)


def test_a_replaced_entry_is_used_as_a_whole(tmp_path: Path) -> None:
    store, (key,) = kept(tmp_path, 1)
    before = store.use(key)
    store.keep(key, {"seed": 0}, fill, replace=True)
    after = store.use(key)
    assert before is not None
    assert after is not None
    before.release()
    assert store.prune(keep_bytes=0) == []
    after.release()
    assert store.prune(keep_bytes=0) == [key]


def test_stale_entries_are_said_to_be(tmp_path: Path) -> None:
    """Those of an older schema; their keys are other ones, so that no run finds them."""
    store = Store(tmp_path)
    keys = []
    for schema in (None, SCHEMA - 1, "2", SCHEMA, SCHEMA + 1):
        description = DESCRIPTION if schema is None else {**DESCRIPTION, "schema": schema}
        keys.append(store.key(description))
        store.keep(keys[-1], description, fill)
    assert len(set(keys)) == 5
    assert {entry.key for entry in store.list() if entry.stale} == set(keys[:3])
    assert sorted(store.prune(stale=True)) == sorted(keys[:3])
    assert listed(store) == set(keys[3:])  # a later version has made the last one, and uses it


def test_a_store_that_is_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it holds can be used. (Its user may write everywhere, so the refusal is made.)"""
    store, (key,) = kept(tmp_path, 1)

    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    use = Store(tmp_path).use(key)
    assert use is not None
    with pytest.raises(StoreError, match=r"paths\.store="):
        Store(tmp_path).work(key)
    monkeypatch.undo()
    folder = store.work(key)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(StoreError, match="read only"):
        store.work(key)
    assert folder.is_dir()


def test_a_file_system_without_locks(lose_locks: Callable[[], str], tmp_path: Path) -> None:
    """What the store holds can be used; nothing is made or removed that nobody can guard."""
    _, (key,) = kept(tmp_path, 1)
    reason = lose_locks()
    store = Store(tmp_path, limit_bytes=0)
    use = store.use(key)
    assert use is not None
    assert (use.path / "model.safetensors").read_bytes() == b"x" * 100
    other = store.key(DESCRIPTION)
    for act in (
        lambda: store.lock(other).__enter__(),
        lambda: store.keep(other, DESCRIPTION, fill),
        lambda: store.prune(keys=[key]),
    ):
        with pytest.raises(StoreError, match=rf"{reason}.*paths\.store=") as caught:
            act()
        assert str(tmp_path) in str(caught.value)
    assert listed(store) == {key}
    use.release()


def test_what_is_locked_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    key = store.key(DESCRIPTION)
    store.keep(key, DESCRIPTION, fill)
    half = tmp_path / "partial" / f"{key}-abc"
    half.mkdir()
    with store.lock(key), store.lock(key):
        for other in (store, Store(tmp_path)):
            assert other.prune(keep_bytes=0) == []
        assert half.exists()
    assert store.prune(keep_bytes=0) == [key]
    assert not half.exists()


def test_lock_excludes_threads(tmp_path: Path) -> None:
    store = Store(tmp_path)
    key = store.key(DESCRIPTION)
    errors: list[str] = []

    def other() -> None:
        try:
            with store.lock(key, timeout=0.05):
                errors.append("entered")
        except StoreError as error:
            errors.append(str(error))

    with store.lock(key):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(errors) == 1
    assert "paths.store=" in errors[0]
    assert str(tmp_path) in errors[0]


def test_work(tmp_path: Path) -> None:
    store = Store(tmp_path)
    key = store.key(DESCRIPTION)
    store.clear_work(key)
    folder = store.work(key)
    (folder / "last.ckpt").write_bytes(b"x")
    assert (store.work(key) / "last.ckpt").read_bytes() == b"x"
    assert store.list() == []
    store.clear_work(key)
    assert not folder.exists()


def test_a_root_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    store = Store(tmp_path / "file" / "store")
    key = store.key(DESCRIPTION)
    assert store.entry(key) is None
    assert store.list() == []
    for use in (
        lambda: store.keep(key, DESCRIPTION, fill),
        lambda: store.work(key),
        lambda: store.lock(key).__enter__(),
    ):
        with pytest.raises(StoreError, match=r"store: .*paths\.store=") as error:
            use()
        assert isinstance(error.value, OSError)

    def read_only(self: Path, target: Path) -> Path:
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr(Path, "rename", read_only)
    with pytest.raises(StoreError, match="Read-only file system"):
        Store(tmp_path).keep(key, DESCRIPTION, fill)


def keep_once(root: Path, barrier: Path, number: int) -> None:
    store = Store(root)
    key = store.key(DESCRIPTION)

    def write(folder: Path) -> None:
        with (root / "calls").open("a") as calls:
            calls.write(f"{number}\n")
        time.sleep(0.2)  # the others come meanwhile
        fill(folder)

    (barrier / str(number)).touch()
    while len(list(barrier.iterdir())) < 4:
        time.sleep(0.01)
    with store.lock(key):
        if store.entry(key) is None:
            store.keep(key, DESCRIPTION, write)
    assert store.entry(key) is not None


def die_while_writing(root: Path) -> None:
    store = Store(root)

    def write(folder: Path) -> None:
        fill(folder)
        os.kill(os.getpid(), signal.SIGKILL)

    store.keep(store.key(DESCRIPTION), DESCRIPTION, write)


def test_many_processes_make_one_model(tmp_path: Path) -> None:
    barrier = tmp_path / "barrier"
    barrier.mkdir()
    root = tmp_path / "store"
    root.mkdir()
    context = forks()
    processes = [
        context.Process(target=keep_once, args=(root, barrier, number)) for number in range(4)
    ]
    killed = context.Process(target=die_while_writing, args=(tmp_path / "killed",))
    for process in [*processes, killed]:
        process.start()
    for process in [*processes, killed]:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    assert len((root / "calls").read_text().split()) == 1
    assert len(Store(root).list()) == 1

    # the killed process leaves no lock, no visible entry, and a rest that prune clears
    assert killed.exitcode == -signal.SIGKILL
    store = Store(tmp_path / "killed")
    key = store.key(DESCRIPTION)
    assert store.entry(key) is None
    assert store.list() == []
    assert len(list((store.root / "partial").iterdir())) == 1
    with store.lock(key, timeout=1):
        pass
    store.prune()
    assert list((store.root / "partial").iterdir()) == []
    store.keep(key, DESCRIPTION, fill)
    assert store.entry(key) is not None


def test_a_work_folder_in_use_stays(tmp_path: Path) -> None:
    """Whoever prunes meanwhile, and however; two runs may use one."""
    store, other = Store(tmp_path), Store(tmp_path)
    key = store.key(DESCRIPTION)
    first, second = store.use_work(key), other.use_work(key)
    (first.path / "last.ckpt").touch()
    os.utime(first.path / "last.ckpt", (0, 0))
    for use in (first, second):
        other.prune(keys=[key])
        other.prune(older_than_days=0)
        assert (first.path / "last.ckpt").exists()
        use.release()
    other.prune(keys=[key])
    assert not first.path.exists()
    assert store.use_work(key).path == first.path


def test_an_entry_under_another_key_is_none(tmp_path: Path) -> None:
    """The key is that of the description, whatever the entry says of itself."""
    store = Store(tmp_path)
    other: dict[str, object] = {**DESCRIPTION, "seed": 12345}
    folder = store.keep(store.key(DESCRIPTION), DESCRIPTION, fill)
    key = store.key(other)
    moved = folder.rename(folder.with_name(key))
    facts = json.loads((moved / "entry.json").read_text())
    (moved / "entry.json").write_text(json.dumps({**facts, "key": key}))
    assert store.entry(key) is None
    assert store.use(key) is None
    (moved / "entry.json").write_text(json.dumps({**facts, "key": key, "description": other}))
    assert store.entry(key) == moved


def test_a_use_ends_with_its_object(tmp_path: Path) -> None:
    store = Store(tmp_path)
    key = store.key(DESCRIPTION)
    store.keep(key, DESCRIPTION, fill)
    use = store.use(key)
    assert use is not None
    assert store.prune(keys=[key]) == []
    del use
    assert store.prune(keys=[key]) == [key]


def test_an_entry_that_goes_while_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process removes it, or puts another in its place, before it is held."""
    store = Store(tmp_path)
    key = store.key(DESCRIPTION)
    for again in (False, True):
        store.keep(key, DESCRIPTION, fill)
        done: list[bool] = []

        def meanwhile(
            *_: object, done: list[bool] = done, again: bool = again, **__: object
        ) -> None:
            if not done:
                done.append(True)
                shutil.rmtree(tmp_path / "models" / key)
                if again:
                    Store(tmp_path).keep(key, DESCRIPTION, fill)

        with monkeypatch.context() as patch:
            patch.setattr("fst_lightning.checkpoints.store.store.lock_open_file", meanwhile)
            use = store.use(key)
        assert (use is not None) == again
        if use is not None:
            assert os.path.samestat(os.fstat(use._held.fileno()), (use.path / "entry.json").stat())
