"""A run that is told to stop ends cleanly, and goes on as if nothing had happened."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import signal
from collections.abc import Iterator
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file

from fst_lightning.checkpoints import Store
from fst_lightning.cli.stopping import resuming
from tests.cli.conftest import Command, Outcome

EPOCHS = (
    "report.enabled=false",
    "training.max_epochs=3",
    "data.crop_padding=1",
    "data.horizontal_flip=true",
)
PURIFY = (*EPOCHS, "tuning.max_epochs=3", "tuning.clean_ratio=0.5")
SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


class SignalAt(L.Callback):
    """Sends the process a signal, once, at a place of a training."""

    def __init__(self, number: int, module: str, hook: str, epoch: int = 1) -> None:
        self.number = number
        self.module = module
        self.epoch = epoch
        setattr(self, hook, self.send)

    def send(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **_: Any) -> None:
        if type(pl_module).__name__ == self.module and trainer.current_epoch >= self.epoch:
            os.kill(os.getpid(), self.number)


def at(number: int, module: str, hook: str, epoch: int = 1) -> list[str]:
    values = {"number": int(number), "module": module, "hook": hook, "epoch": epoch}
    lines = [f"+callbacks.stop.{name}={value}" for name, value in values.items()]
    return [f"+callbacks.stop._target_={__name__}.SignalAt", *lines]


def weights(outcome: Outcome, task: str) -> dict[str, torch.Tensor]:
    (file,) = outcome.folder.rglob("results.json")
    name = "purified" if task == "purify" else "backdoored"
    return load_file(json.loads(file.read_text(encoding="utf-8"))["checkpoints"][name])


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def check_clean(outcome: Outcome, number: int) -> None:
    """One line, the right status, and nothing half-written."""
    assert outcome.code == SIGNALS[signal.Signals(number)]
    (line,) = outcome.err.splitlines()
    assert line.startswith(f"stopped by {signal.Signals(number).name}; go on with: python ")
    assert shlex.split(line)[-1] == "resume=true"
    for name in outcome.written:
        assert not name.endswith((".part", ".tmp", "results.json", "failure.json")), name
    partial = outcome.folder / "store" / "partial"
    assert not partial.exists() or not list(partial.iterdir())
    for lock in (outcome.folder / "store" / "locks").glob("*.lock"):
        with Store(outcome.folder / "store").lock(lock.stem, timeout=0):
            pass


@pytest.fixture(autouse=True)
def as_in_a_terminal() -> Iterator[None]:
    """Tests that run in the background have inherited that these are ignored."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, dict[str, torch.Tensor]]:
    return {}


@pytest.mark.parametrize(
    ("number", "task", "module", "hook"),
    [
        (signal.SIGINT, "train", "BackdoorModule", "on_train_batch_end"),
        (signal.SIGTERM, "purify", "BackdoorModule", "on_validation_batch_start"),
        (signal.SIGINT, "purify", "PurificationModule", "on_train_batch_start"),
        (signal.SIGTERM, "purify", "PurificationModule", "on_train_end"),
    ],
)
def test_in_the_middle_of_a_training(
    number: int,
    task: str,
    module: str,
    hook: str,
    command: Command,
    undisturbed: dict[str, dict[str, torch.Tensor]],
) -> None:
    lines = PURIFY if task == "purify" else EPOCHS
    stopped = command(*lines, *at(number, module, hook), "hydra.run.dir=run", task=task)
    check_clean(stopped, number)
    left = sorted((stopped.folder / "store" / "work").glob("*/*"))
    (last,) = (path for path in left if path.suffix != ".lock")  # a purification holds its folder
    assert last.name == "last.ckpt"
    resumed = command(*lines, "resume=true", "hydra.run.dir=run", task=task)
    assert resumed.code == 0
    assert f"continues from {last.relative_to(stopped.folder)}" in resumed.out
    if task not in undisturbed:
        outcome = command(*lines, "paths.store=other", "hydra.run.dir=other", task=task)
        (stopped.folder / "run/results.json").rename(stopped.folder / "run/kept")
        undisturbed[task] = weights(outcome, task)
        (stopped.folder / "other/results.json").unlink()
        (stopped.folder / "run/kept").rename(stopped.folder / "run/results.json")
    assert same(weights(resumed, task), undisturbed[task])


@pytest.mark.parametrize(
    ("number", "module", "name"),
    [
        (signal.SIGINT, "cli.overrides", "check_overrides"),
        (signal.SIGHUP, "pipelines.purify", "make_source"),
        (signal.SIGTERM, "pipelines.purify", "score"),
        (signal.SIGINT, "checkpoints.write", "save_file"),
        (signal.SIGTERM, "pipelines.purify", "finish"),
    ],
)
def test_at_any_other_moment(
    number: int, module: str, name: str, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: Any, **kwargs: Any) -> None:
        os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(importlib.import_module(f"fst_lightning.{module}"), name, stop)
        check_clean(command("hydra.run.dir=run"), number)
    assert command("hydra.run.dir=run", "resume=true").code == 0


def test_one_that_a_library_makes_an_error_of(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever comes of the signal on its way up, the run was stopped."""

    def stop(*args: Any, **kwargs: Any) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            raise RuntimeError("something went wrong") from None

    pipeline = importlib.import_module("fst_lightning.pipelines.purify")
    monkeypatch.setattr(pipeline, "make_source", stop)
    check_clean(command(), signal.SIGTERM)


def test_a_sweep_stops_as_a_whole_and_goes_on(command: Command) -> None:
    lines = ("-m", "seed=0,1", *PURIFY)
    stopped = command(*lines, *at(signal.SIGTERM, "PurificationModule", "on_train_start", 0))
    check_clean(stopped, signal.SIGTERM)
    assert "#0" in stopped.out
    assert "#1" not in stopped.out
    assert command(*lines, "resume=true").code == 0


def test_what_was_ignored_stays_ignored(command: Command) -> None:
    """As nohup does with SIGHUP, and a shell with the SIGINT of a job in the background."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        outcome = command(*at(signal.SIGHUP, "PurificationModule", "on_train_start", 0))
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert outcome.code == 0


def test_handlers_are_put_back(command: Command) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    command("attack=nope")
    command("hydra.run.dir=run", *at(signal.SIGINT, "PurificationModule", "on_train_start", 0))
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_the_command_is_quoted() -> None:
    lines = ["attack=sig", "data.root='a b'", "resume=old.ckpt", "-m"]
    assert resuming("purify", lines) == (
        """python purify.py attack=sig 'data.root='"'"'a b'"'"'' -m resume=true"""
    )
