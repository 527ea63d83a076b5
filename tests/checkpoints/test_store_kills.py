"""Processes that share a store and die at any moment."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from fst_lightning.checkpoints import Store
from tests.checkpoints.kills import note, run_with_kills, was_made_once
from tests.forks import forks

MODELS = 3


def description(model: int) -> dict[str, object]:
    return {"seed": model}


def contents(model: int, pid: int) -> bytes:
    """A file that tells who made it, and whether it is whole."""
    return (hashlib.sha256(f"{model}".encode()).hexdigest() * 2000 + f" {pid}").encode()


def get(store: Store, model: int, log: Path) -> None:
    """Use a model, or make it first: as a run does."""
    key = store.key(description(model))

    def train(folder: Path) -> None:
        note(log, key)
        whole = contents(model, os.getpid())
        with (folder / "model.safetensors").open("wb") as file:
            for start in range(0, len(whole), 20_000):
                file.write(whole[start : start + 20_000])
                file.flush()
                time.sleep(0.01)

    use = store.use(key)
    with contextlib.nullcontext() if use else store.lock(key):
        use = use or store.use(key)
        if use is None:
            store.keep(key, description(model), train, replace=True)
            use = store.use(key)
    assert use is not None
    text = (use.path / "model.safetensors").read_bytes()
    assert text == contents(model, int(text.split()[-1]))
    use.release()


def worker(root: str, number: int) -> None:
    store = Store(Path(root, "store"))
    models = list(range(MODELS))
    random.Random(number).shuffle(models)
    for model in models:
        get(store, model, Path(root, "log"))


def pruning_worker(root: str, number: int) -> None:
    """In a store that has room for less than two models."""
    store = Store(Path(root, "store"), limit_bytes=1.5 * len(contents(0, 0)))
    generator = random.Random(number)
    for _ in range(6):
        get(store, generator.randrange(MODELS), Path(root, "log"))


def starter(target: Callable[[str, int], None], root: Path) -> Callable[[int], BaseProcess]:
    return lambda number: forks().Process(target=target, args=(str(root), number))


def check(root: Path, killed: set[int]) -> None:
    store = Store(root / "store")
    assert {entry.key for entry in store.list()} == {
        store.key(description(model)) for model in range(MODELS)
    }
    for entry in store.list():
        maker = int((entry.path / "model.safetensors").read_bytes().split()[-1])
        was_made_once(root / "log", entry.key, maker, killed)
        with store.lock(entry.key, timeout=1):
            pass
    assert list((root / "store" / "partial").iterdir()) == []


@pytest.mark.parametrize("seed", range(2))
def test_each_model_is_made_once(tmp_path: Path, seed: int) -> None:
    """Eight processes, some of which are killed while they make one."""
    killed = run_with_kills(starter(worker, tmp_path), 8, seed, kills=5, within=0.6)
    check(tmp_path, killed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 22))
def test_each_model_is_made_once_whenever_they_die(tmp_path: Path, seed: int) -> None:
    killed = run_with_kills(starter(worker, tmp_path), 8, seed, kills=8, within=1.0)
    check(tmp_path, killed)


def test_a_small_store_loses_nothing_in_use(tmp_path: Path) -> None:
    """Models come and go; whoever uses one, finds all of it."""
    run_with_kills(starter(pruning_worker, tmp_path), 4, 0, kills=1, within=0.5)
    store = Store(tmp_path / "store")
    store.prune(keep_bytes=1.5 * len(contents(0, 0)))
    assert len(store.list()) == 1
    assert list((tmp_path / "store" / "partial").iterdir()) == []
