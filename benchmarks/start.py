"""From the command to the first training step, and the memory at the peak.

    python benchmarks/start.py            # some minutes on 2 cores
    python benchmarks/start.py --quick    # the embedded digits alone

Every figure is of a process of its own, timed from its start. Memory is the greatest resident size,
above what the process has after its imports.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from argparse import ArgumentParser
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import lightning as L

from benchmarks.machine import ROOT, environment, seconds, write
from benchmarks.ours import data_overrides
from benchmarks.setting import Setting
from fst_lightning.pipelines.runtime.memory import peak_memory_mb

IMPORTS = ("torch", "torchvision", "torchmetrics", "lightning", "fst_lightning.pipelines")
CIFAR = (
    *data_overrides(Setting(64, 128, 0, 10_000, "cpu", train_images=50_000)),
    "training.batch_size=128",
)
RUNS = {
    "digits, small ResNet": (),
    "50,000 images, ResNet-18 of width 16": (*CIFAR, "model=resnet18", "model.width=16"),
    "50,000 images, ResNet-18 of width 64": (*CIFAR, "model=resnet18"),
    "50,000 images, airbench": (*CIFAR, "model=airbench", "training=airbench94"),
}
STEPS = 8


class FirstStep(L.Callback):
    """Writes down when the first step began, and the memory when the steps are over.

    Args:
        path: of the file.
        started: when the process was started, seconds since 1970.
    """

    def __init__(self, path: str, started: float) -> None:
        self.path, self.started = Path(path), started
        self.found: dict[str, float] = {}

    def on_train_batch_start(self, *_: Any) -> None:
        """Take the time, once."""
        self.found.setdefault("first_step_s", time.time() - self.started)

    def on_fit_end(self, *_: Any) -> None:
        """Take the memory and write both."""
        self.found["peak_mb"] = peak_memory_mb() or 0.0
        self.path.write_text(json.dumps(self.found), encoding="utf-8")


def main() -> None:
    """Measure, print and write."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="no networks for photographs")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures into this file")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    commands = {"purify.py --help": ["purify.py", "--help"]}
    commands |= {f"import {name}": ["-c", f"import {name}"] for name in IMPORTS}
    for name, command in commands.items():
        figures[name] = median(seconds(command) for _ in range(options.repeats))
        print(f"{name}: {figures[name]:.2f} s", flush=True)
    imported = memory_of_imports()
    print(f"resident after all imports: {imported:.0f} MB", flush=True)
    figures["imports_mb"] = imported
    for name, lines in RUNS.items():
        if lines and options.quick:
            continue
        runs = [first_step(*lines) for _ in range(options.repeats)]
        row = {key: median(run[key] for run in runs) for key in runs[0]}
        figures[name] = row
        print(
            f"{name}: first step after {row['first_step_s']:.1f} s, "
            f"peak {row['peak_mb'] - imported:.0f} MB above the imports",
            flush=True,
        )
    write(options.json, {"environment": environment("cpu"), "figures": figures})


def memory_of_imports() -> float:
    """What a process that has imported everything holds at most, MB."""
    code = (
        "import torch, fst_lightning.pipelines, fst_lightning.modules\n"
        "from fst_lightning.pipelines.runtime.memory import peak_memory_mb\n"
        "print(peak_memory_mb())"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    return float(done.stdout)


def first_step(*lines: str) -> dict[str, float]:
    """Train for a few steps by the command line; when the first began, and the peak."""
    with TemporaryDirectory() as folder:
        notes = Path(folder) / "notes.json"
        command = [
            *("train.py", *lines),
            "attack=blended",
            "training.max_epochs=1",
            "trainer.accelerator=cpu",
            f"trainer.limit_train_batches={STEPS}",
            "trainer.limit_test_batches=1",
            "report.enabled=false",
            f"paths.store={folder}/store",
            f"hydra.run.dir={folder}/run",
            "+callbacks.first._target_=benchmarks.start.FirstStep",
            f"+callbacks.first.path={notes}",
        ]
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        command.append(f"+callbacks.first.started={time.time()}")
        subprocess.run(
            [sys.executable, *command], check=True, capture_output=True, cwd=ROOT, env=environ
        )
        found: dict[str, float] = json.loads(notes.read_text(encoding="utf-8"))
        return found


if __name__ == "__main__":
    main()
