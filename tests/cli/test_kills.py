"""A run that is killed at any moment loses at most the epoch that it was in."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file

from fst_lightning.checkpoints import Store, read_checkpoint
from fst_lightning.reports import read_results
from tests.cli.processes import Started
from tests.runs import tiny

_EPOCHS = 4
LINES = (
    f"training.max_epochs={_EPOCHS}",
    f"tuning.max_epochs={_EPOCHS}",
    "tuning.clean_ratio=0.5",
    "data.crop_padding=1",
    "data.horizontal_flip=true",
    "report.enabled=false",
    "hydra.run.dir=run",
    f"+callbacks.notes._target_={__name__}.Notes",
)
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}


class Notes(L.Callback):
    """Writes down every epoch that begins, and gives a kill time to come in it."""

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        with Path("epochs").open("a", encoding="utf-8") as file:
            file.write(f"{type(pl_module).__name__} {trainer.current_epoch}\n")

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        time.sleep(0.01)


def start(task: str, folder: Path, *more: str) -> Started:
    lines = [line for line in LINES if task == "purify" or not line.startswith("tuning")]
    return Started(task, [*tiny(task, lines), *lines, *more], folder)


def outcome(task: str, folder: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    results, error = read_results(folder / "run" / "results.json")
    assert error is None
    assert results is not None
    name = "purified" if task == "purify" else "backdoored"
    weights = load_file(results["checkpoints"][name])
    return [results[key] for key in ("before", "after", "der", "ci95")], weights


def check_kept(folder: Path) -> None:
    """Whatever has its final name is whole."""
    store = Store(folder / "store")
    for path in folder.rglob("*"):
        if path.name.startswith("."):
            continue  # half a file has such a name
        if path.suffix == ".ckpt":
            torch.load(path, weights_only=True)
        elif path.name in ("results.json", "failure.json"):
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".safetensors" and "partial" not in path.parts:
            read_checkpoint(path)
    models = folder / "store" / "models"
    if models.is_dir():
        assert {entry.key for entry in store.list()} == {path.name for path in models.iterdir()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By task: how long it takes, its figures and its weights."""
    found = {}
    for task in ("train", "purify"):
        folder = tmp_path_factory.mktemp(task)
        start(task, folder / "first").wait()  # the server of the processes has started then
        begun = time.monotonic()
        done = start(task, folder / "second").wait()
        assert done.code == 0, done.err
        found[task] = (time.monotonic() - begun, *outcome(task, folder / "second"))
    return found


def kill(task: str, seed: int, number: int, folder: Path, undisturbed: dict[str, Any]) -> bool:
    """Kill a run at a random moment, go on with it, compare; whether it was killed in time."""
    duration, figures, weights = undisturbed[task]
    process = start(task, folder)
    time.sleep(random.Random(seed).uniform(0, duration))
    try:
        process.tell(number)
    except ProcessLookupError:
        return False
    done = process.wait()
    if done.code == 0:
        return False
    assert done.code == STATUS.get(signal.Signals(number), -number), done.err
    assert "Traceback" not in done.err
    check_kept(folder)
    if number != signal.SIGKILL:
        assert done.err.count("\n") == 1, done.err
        assert done.err.startswith(f"stopped by {signal.Signals(number).name}; go on with: ")
        assert not [p for p in folder.rglob("*") if p.name.endswith((".part", ".tmp"))]
    done = start(task, folder, "resume=true").wait()
    assert done.code == 0, done.err
    check_kept(folder)
    again, resumed = outcome(task, folder)
    assert again == figures
    assert resumed.keys() == weights.keys()
    assert all(torch.equal(resumed[name], weights[name]) for name in weights)
    assert not list((folder / "store" / "work").glob("*/*"))
    begun = (folder / "epochs").read_text(encoding="utf-8").splitlines()
    stages = 2 if task == "purify" else 1
    assert len(set(begun)) == stages * _EPOCHS
    assert len(begun) <= stages * _EPOCHS + 1  # the epoch that it was in, and no other, twice
    shutil.rmtree(folder)
    return True


@pytest.mark.slow
@pytest.mark.parametrize("task", ["train", "purify"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_random_moments(
    number: int, task: str, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    tries = 20 if number == signal.SIGKILL else 10
    seeds = range(1000 * number, 1000 * number + tries)
    killed = [kill(task, seed, number, tmp_path / str(seed), undisturbed) for seed in seeds]
    print(f"{signal.Signals(number).name} {task}: survived {sum(killed)} of {tries}")
    assert sum(killed) >= tries // 2  # the others had ended before


def test_a_kill(tmp_path: Path) -> None:
    """One of them, in every run of the tests: between two epochs of a purification."""
    process = start("purify", tmp_path)
    notes = tmp_path / "epochs"
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if notes.is_file() and "PurificationModule 2" in notes.read_text(encoding="utf-8"):
            break
        time.sleep(0.005)
    process.tell(signal.SIGKILL)
    assert process.wait().code == -signal.SIGKILL
    check_kept(tmp_path)
    done = start("purify", tmp_path, "resume=true").wait()
    assert done.code == 0, done.err
    assert "tune: continues from" in done.out
    begun = notes.read_text(encoding="utf-8").splitlines()
    assert len(set(begun)) == 2 * _EPOCHS
    assert len(begun) <= 2 * _EPOCHS + 1
    resumed = outcome("purify", tmp_path)
    start("purify", tmp_path, "paths.store=other").wait()
    figures, weights = outcome("purify", tmp_path)
    assert resumed[0] == figures
    assert all(torch.equal(resumed[1][name], weights[name]) for name in weights)
    assert not list((tmp_path / "store" / "work").iterdir())
