"""Six purifications of one backdoored model: one multirun against six single runs.

    python benchmarks/sweep.py

The embedded digits; the backdoored model is trained before the clock starts.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import environment, seconds, write

ALPHAS = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)


def main() -> None:
    """Measure, print and write."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one epoch each")
    parser.add_argument("--json", type=Path, help="write the figures into this file")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        lines = ["attack=blended", f"paths.store={folder}/store", f"paths.outputs={folder}/out"]
        if options.quick:
            lines.append("training.max_epochs=1")
        seconds(["train.py", *lines])
        if options.quick:
            lines.append("tuning.max_epochs=1")
        single = sum(seconds(["purify.py", *lines, f"defense.alpha={alpha}"]) for alpha in ALPHAS)
        swept = f"defense.alpha={','.join(map(str, ALPHAS))}"
        multirun = seconds(["purify.py", "-m", *lines, swept, f"hydra.sweep.dir={folder}/sweep"])
    print(f"six single runs {single:.1f} s, one multirun {multirun:.1f} s: {single / multirun:.2f}")
    figures = {"single": single, "multirun": multirun}
    write(options.json, {"environment": environment("cpu"), "seconds": figures})


if __name__ == "__main__":
    main()
