"""Time and memory against the number of images and of classes.

    python benchmarks/scaling.py

Every case is a process of its own: it makes the images, plans the poisoning, trains a linear
network for an epoch and evaluates it once, so that what does not depend on the network shows. Its
peak memory is counted above what it has after its imports.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

ROOT = Path(__file__).resolve().parents[1]
IMAGES = (1_000, 10_000, 50_000, 500_000)
CLASSES = (10, 100, 1000)
BATCH = 512


def main() -> None:
    """Measure, print and write."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="no more than 10,000 images")
    parser.add_argument("--json", type=Path, help="write the figures into this file")
    parser.add_argument("--case", type=int, nargs=2, help="measure one: images, classes")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(case(*options.case)))
        return
    counts = [count for count in IMAGES if count <= 10_000 or not options.quick]
    cases = [(count, 10) for count in counts] + [(10_000, classes) for classes in CLASSES[1:]]
    rows = []
    for images, classes in cases:
        row = measure(images, classes)
        rows.append(row)
        print("  ".join(f"{key} {value:,}" for key, value in row.items()), flush=True)
    from benchmarks.machine import environment, write

    write(options.json, {"environment": environment("cpu"), "rows": rows})


def measure(images: int, classes: int) -> dict[str, Any]:
    """Run one case in a process of its own."""
    command = [sys.executable, __file__, "--case", str(images), str(classes)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def case(images: int, classes: int) -> dict[str, Any]:
    """One case, here."""
    from torch import nn

    from benchmarks.machine import bare_trainer
    from fst_lightning import BackdoorDataModule, BackdoorModule
    from fst_lightning.attacks import Blended
    from fst_lightning.data import Fake
    from fst_lightning.pipelines.build.parts import quiet_lightning
    from fst_lightning.pipelines.runtime.memory import peak_memory_mb

    quiet_lightning()
    imported = peak_memory_mb() or 0.0
    started = time.perf_counter()
    source = Fake(num_classes=classes, num_train=images, num_test=max(classes, images // 5))
    attack = Blended(poison_ratio=0.1)
    data = BackdoorDataModule(source, attack, batch_size=BATCH)
    data.setup()
    made = time.perf_counter()
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, classes))
    module = BackdoorModule(net, attack, crop_padding=4, horizontal_flip=True, seed=0)
    trainer = bare_trainer()
    trainer.fit(module, data)
    trained = time.perf_counter()
    trainer.test(module, data, verbose=False)
    tested = time.perf_counter()
    peak = peak_memory_mb() or 0.0
    return {
        "images": images,
        "classes": classes,
        "load and plan s": round(made - started, 2),
        "train s": round(trained - made, 2),
        "test s": round(tested - trained, 2),
        "images MB": round((images + max(classes, images // 5)) * 3 * 32 * 32 / 2**20, 1),
        "peak above imports MB": round(peak - imported, 1),
    }


if __name__ == "__main__":
    main()
