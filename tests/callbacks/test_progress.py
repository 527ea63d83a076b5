"""What is printed of a run."""

import itertools
import re
import sys
import time
from typing import Any

import pytest
import torch

from fst_lightning.callbacks import FSTCallback, LiveProgress, PlainProgress, progress_callback
from fst_lightning.defenses import FST
from fst_lightning.modules import PurificationModule
from tests.callbacks.projects import Project, make_loader, make_net, make_trainer, sgd

LINE = re.compile(r"tune: epoch (\d+)/(\d+)  loss (-?\d+\.\d{3})  CA (\d\.\d{3})  (\d+) s left")


def fit(progress: PlainProgress, **options: Any) -> PurificationModule:
    module = PurificationModule(make_net(), FST(0.3), sgd, seed=0)
    trainer = make_trainer(progress, enable_progress_bar=True, **options)
    trainer.fit(module, make_loader(), make_loader())
    return module


class Recording(PurificationModule):
    """Keeps the losses that it reports."""

    def __init__(self) -> None:
        super().__init__(make_net(), FST(0.3), sgd, seed=0)
        self.losses: list[float] = []

    def on_train_epoch_end(self) -> None:
        total = self._sums["loss"] / self._num_batches
        self.losses.append(float(total))
        super().on_train_epoch_end()


def test_a_line_for_every_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    module = Recording()
    trainer = make_trainer(
        PlainProgress("tune", min_seconds=0), enable_progress_bar=True, max_epochs=3
    )
    trainer.fit(module, make_loader(), make_loader())
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("tune")]
    found = [LINE.fullmatch(line) for line in lines]
    assert [m and m[1] for m in found] == ["1", "2", "3"], lines
    assert {m and m[2] for m in found} == {"3"}
    # Every line shows the loss of its own epoch, not of the one before.
    assert [float(m[3]) for m in found if m] == pytest.approx(module.losses, abs=1e-3)
    assert found[-1] is not None
    assert found[-1][5] == "0"


def test_time_left(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of eight epochs in 20 s: another 60 s."""
    progress = PlainProgress("tune")
    trainer = make_trainer(enable_progress_bar=False, max_epochs=8)
    clock = itertools.chain([100.0], itertools.repeat(120.0))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    progress.on_train_start(trainer, Project())
    progress.show(trainer, 2)
    assert capsys.readouterr().out == "tune: epoch 2/8  60 s left\n"


def test_short_runs_print_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    fit(PlainProgress("tune", min_seconds=1000), max_epochs=3)
    out = capsys.readouterr().out
    assert out.count("tune: epoch") == 1
    assert "epoch 3/3" in out


def test_run_that_counts_steps(capsys: pytest.CaptureFixture[str]) -> None:
    fit(PlainProgress("tune", min_seconds=0), max_epochs=-1, max_steps=15)
    out = capsys.readouterr().out
    assert "-1" not in out.replace("loss -", "")
    assert "left" not in out
    assert "tune: epoch 1  loss" in out


def test_other_processes_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    progress = PlainProgress("tune", min_seconds=0)
    progress.disable()
    fit(progress)
    assert "tune" not in capsys.readouterr().out
    progress.enable()
    fit(progress)
    assert "tune: epoch 1/1" in capsys.readouterr().out


def test_project_that_logs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = make_trainer(PlainProgress("tune"), FSTCallback(), enable_progress_bar=True)
    trainer.fit(Project(), make_loader())
    assert "tune: epoch 1/1  0 s left" in capsys.readouterr().out


def test_live_bar_ends_with_the_last_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    fit(LiveProgress("tune"), max_epochs=2)
    words = " ".join(capsys.readouterr().out.split())
    assert "tune" in words
    assert "epoch 2/2" in words
    assert "100%" in words


def test_live_bar_lets_go_of_the_terminal_after_a_failure() -> None:
    class Failing(Project):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            raise RuntimeError("out of memory")

    for _ in range(2):  # a second live display would be refused while the first is up
        with pytest.raises(RuntimeError, match="memory"):
            make_trainer(LiveProgress(), enable_progress_bar=True).fit(Failing(), make_loader())


@pytest.mark.parametrize(("terminal", "kind"), [(True, LiveProgress), (False, PlainProgress)])
def test_choice(terminal: bool, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    progress = progress_callback("tune")
    assert type(progress) is kind
    assert progress.title == "tune"
