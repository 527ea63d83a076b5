"""A whole purification: start-up, evaluation, ten epochs of FST on 1,000 images, evaluation.

    python benchmarks/purification.py            # a ResNet-18 of full width: ten minutes on 2 cores
    python benchmarks/purification.py --quick

Each way is a process of its own, timed from its start to its end: the usual way, and ``purify.py``.
Both read the same weights and evaluate 10,000 clean and 9,000 triggered images, before and after.
"""

from __future__ import annotations

import subprocess
import sys
import time
from argparse import ArgumentParser
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks import usual
from benchmarks.machine import environment, spread, write
from benchmarks.ours import shared_overrides
from benchmarks.setting import Setting

ROOT = Path(__file__).resolve().parents[1]
TUNING_IMAGES, TEST_IMAGES, EPOCHS, BATCH = 1000, 10_000, 10, 128


def main() -> None:
    """Measure, print and write."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the images, one epoch")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures into this file")
    parser.add_argument("--usual", type=Path, help="weights: run the usual way on them, here")
    options = parser.parse_args()
    tuning, test, epochs = TUNING_IMAGES, TEST_IMAGES, EPOCHS
    if options.quick:
        tuning, test, epochs = tuning // 10, test // 10, 1

    steps = -(-tuning // BATCH)
    setting = Setting(options.width, BATCH, steps, test, options.device, tuning)
    if options.usual:
        usual.purify(setting, options.usual, epochs)
        return

    about = environment(options.device)
    seconds: dict[str, list[float]] = {"a": [], "c": []}
    with TemporaryDirectory() as folder:
        weights = Path(folder) / "backdoored.pt"
        torch.save(setting.network().state_dict(), weights)
        ways = {
            "a": [__file__, "--usual", str(weights), *sys.argv[1:]],
            "c": ["purify.py", *ours(setting, weights, epochs, folder)],
        }
        for _ in range(options.repeats):
            for name, command in ways.items():
                started = time.perf_counter()
                subprocess.run(
                    [sys.executable, *command], check=True, stdout=subprocess.DEVNULL, cwd=ROOT
                )
                seconds[name].append(time.perf_counter() - started)
                print(f"{name} {seconds[name][-1]:.1f} s", flush=True)
    gain = [a / c for a, c in zip(seconds["a"], seconds["c"], strict=True)]
    print(f"a/c in time {median(gain):.2f} ({spread(gain)})")
    write(options.json, {"environment": about, "width": options.width, "seconds": seconds})


def ours(setting: Setting, weights: Path, epochs: int, folder: str) -> list[str]:
    """The command line of a user with such a model."""
    return [
        *shared_overrides(setting),
        f"checkpoint={weights}",
        "defense=fst",
        "trainer.limit_val_batches=0",  # the usual way does not look between the epochs either
        f"tuning.max_epochs={epochs}",
        f"tuning.batch_size={setting.batch_size}",
        "tuning.clean_ratio=1.0",
        f"paths.store={folder}/store",
        f"hydra.run.dir={folder}/run",
    ]


if __name__ == "__main__":
    main()
