"""A sweep that is killed again and again ends as one that nobody disturbed."""

import csv
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fst_lightning.reports import read_results
from tests.cli.test_runs import ROOT

JOURNAL = """
from lightning import Callback

class Journal(Callback):
    "Keeps a line for every epoch that was trained."

    def __init__(self, path):
        self.path = path

    def on_train_epoch_end(self, trainer, module):
        job, kind = trainer.default_root_dir.rpartition("/")[2], type(module).__name__
        with open(self.path, "a") as file:
            file.write(f"{job} {kind} {trainer.current_epoch}\\n")
"""
EPOCHS = 2
SWEEP = (
    "-m",
    "attack=badnets,blended",
    "defense=ft,lp,fst",
    "seed=0,1,2",
    f"training.max_epochs={EPOCHS}",
    f"tuning.max_epochs={EPOCHS}",
    "trainer=cpu",
    "report.enabled=false",
    "logger=none",
    "paths.store=store",
    "+callbacks.journal._target_=journal.Journal",
    "+callbacks.journal.path=journal.txt",
)
JOBS = 18
MODELS = 6


def start(folder: Path, *more: str) -> "subprocess.Popen[str]":
    folder.mkdir(exist_ok=True)
    (folder / "journal.py").write_text(JOURNAL)
    code = "import sys; sys.path.insert(0, '.'); from fst_lightning.cli import purify; purify()"
    command = [sys.executable, "-c", code, *SWEEP, *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)


def epochs(folder: Path) -> Counter[str]:
    return Counter((folder / "journal.txt").read_text().splitlines())


def figures(folder: Path) -> list[dict[str, Any]]:
    """Of every job, without what depends on the clock."""
    (sweep,) = (folder / "multirun" / "purify").iterdir()
    found = []
    for job in range(JOBS):
        results, error = read_results(sweep / str(job) / "results.json")
        assert error is None
        assert results is not None
        kept = ("attack", "defense", "data", "model", "before", "after", "der", "ci95", "seed")
        found.append({name: results[name] for name in kept})
    return found


def table(folder: Path) -> list[dict[str, str]]:
    (path,) = (folder / "multirun" / "purify").glob("*/table.csv")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    costs = ("seconds.", "peak_memory_mb.")
    return [{name: v for name, v in row.items() if not name.startswith(costs)} for row in rows]


@pytest.mark.slow
def test_a_sweep_that_is_killed_three_times(tmp_path: Path) -> None:
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    process = start(calm)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0
    assert f"{JOBS} runs, {JOBS // 3} experiments, 0 failed" in out

    generator = random.Random(0)
    # By what is done and not by the clock, for a machine may be busy; and then at any moment.
    moments = sorted(generator.sample(range(2, (JOBS + MODELS) * EPOCHS - 4), 3))
    resumed: list[str] = []
    for moment in moments:
        process = start(killed, *resumed)
        while not (killed / "journal.txt").exists() or epochs(killed).total() < moment:
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(generator.uniform(0, 0.5))
        process.kill()
        process.communicate()
        resumed = ["resume=true"]
    process = start(killed, *resumed)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0
    assert f"{JOBS} runs, {JOBS // 3} experiments, 0 failed" in out
    assert figures(killed) == figures(calm)
    assert table(killed) == table(calm)

    once = epochs(calm)
    assert set(once.values()) == {1}
    assert sum("BackdoorModule" in line for line in once) == MODELS * EPOCHS
    assert sum("PurificationModule" in line for line in once) == JOBS * EPOCHS
    again = epochs(killed)
    assert set(again) == set(once)
    # An epoch is lost if the kill falls between its end and its checkpoint.
    repeated = sum(count - 1 for count in again.values())
    assert repeated <= 3
    assert len(list((killed / "store/models").iterdir())) == MODELS
    assert not list((killed / "store/work").iterdir())
    assert not list((killed / "store/partial").iterdir())
    print(f"killed after {moments} of {sum(once.values())} epochs")
    print(f"{out.count('finished before')} jobs were finished before the last start")
    print(f"{repeated} of {sum(once.values())} epochs were trained twice")
