"""Images per second of the usual way (a), the floor (b) and this project (c), on one network.

    python benchmarks/throughput.py            # two networks, three repeats: about half an hour
    python benchmarks/throughput.py --quick    # two minutes, to see that it runs

The three take turns in one process, so that what the machine does beside meets all of them. The
ratios are medians over the turns, of the figures of one turn each.
"""

from __future__ import annotations

import gc
import sys
from argparse import ArgumentParser
from pathlib import Path
from statistics import median
from types import ModuleType

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import floor, ours, usual
from benchmarks.machine import environment, spread, write
from benchmarks.setting import Setting

CONTESTANTS: dict[str, ModuleType] = {"a": usual, "b": floor, "c": ours}
TASKS = ("train", "tune", "evaluate")
FULL, NARROW = 64, 16


def main() -> None:
    """Measure, print and write."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few steps, one repeat")
    parser.add_argument("--widths", type=int, nargs="+", default=[FULL, NARROW])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--threads", type=int, help="of torch; its own choice if left out")
    parser.add_argument("--json", type=Path, help="write the figures into this file")
    options = parser.parse_args()
    about = environment(options.device, options.threads)
    print("  ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    rows = []
    for width in options.widths:
        for task in options.tasks:
            setting = setting_of(width, options.batch_size, about["device"], options.quick)
            rows.append(compare(task, setting, 1 if options.quick else options.repeats))
    write(options.json, {"environment": about, "rows": rows})


def setting_of(width: int, batch_size: int, device: str, quick: bool) -> Setting:
    """How long to measure: about as long for each of the networks."""
    steps, num_test = (200, 10_000) if device == "cuda" else (12, 2000)
    if device == "cpu" and width < FULL:
        steps, num_test = 60, 10_000
    if quick:
        steps, num_test = max(3, steps // 10), num_test // 10
    return Setting(width, batch_size, steps, num_test, device)


def compare(task: str, setting: Setting, repeats: int) -> dict[str, object]:
    """Let the three take turns, and print their figures."""
    rates: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for turn in range(repeats):
        order = list(CONTESTANTS.items())
        for name, contestant in order if turn % 2 == 0 else reversed(order):
            rates[name].append(getattr(contestant, task)(setting))
            # What is left of one must not be cleared away in the time, or the workers, of the next.
            gc.collect()
    gain = [c / a for a, c in zip(rates["a"], rates["c"], strict=True)]
    loss = [b / c for b, c in zip(rates["b"], rates["c"], strict=True)]
    print(
        f"ResNet-18 width {setting.width:2}  {task:8}  "
        + "  ".join(f"{name} {median(values):8.1f}" for name, values in rates.items())
        + f"  images/s   c/a {median(gain):5.2f} ({spread(gain)})"
        + f"   b/c {median(loss):5.3f} ({spread(loss)})",
        flush=True,
    )
    return {
        "width": setting.width,
        "task": task,
        "batch_size": setting.batch_size,
        "steps": setting.steps,
        "num_test": setting.num_test,
        "images_per_second": rates,
        "c/a": gain,
        "b/c": loss,
    }


if __name__ == "__main__":
    main()
