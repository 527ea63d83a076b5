"""What an attack costs in the steps of a training: clean images per second over poisoned ones.

    python benchmarks/attacks.py    # a ResNet-18 of width 16: some minutes on 2 cores
    python benchmarks/attacks.py --attacks wanet,lira --repeats 3

Clean and poisoned training take turns. What is fitted before the training (surrogates, encoders) is
cut short and not timed.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from omegaconf import OmegaConf

from benchmarks import ours
from benchmarks.machine import environment, spread, write
from benchmarks.setting import Setting
from fst_lightning.configuration import conf_folder, groups

_FITTING = ("surrogate_epochs", "fit_epochs", "mask_epochs")


def main() -> None:
    """Measure, print and write."""
    parser = ArgumentParser(description=__doc__)
    every = [name for name in groups()["attack"] if name != "none"]
    parser.add_argument("--attacks", default=",".join(every), help="names, with commas between")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path, help="write the figures into this file")
    options = parser.parse_args()
    setting = Setting(options.width, 128, options.steps, 20, options.device)
    figures = {}
    for name in options.attacks.split(","):
        costs = []
        for _ in range(options.repeats):
            clean = ours.train(setting, ["attack=none"])
            costs.append(clean / ours.train(setting, lines(name)))
        figures[name] = costs
        print(f"{name}: {median(costs):.2f} ({spread(costs)})", flush=True)
    write(options.json, {"environment": environment(options.device), "cost": figures})


def lines(name: str) -> list[str]:
    """The attack at a rate of 5 %, as the command line says it, with the least of fitting."""
    known = OmegaConf.load(conf_folder() / "attack" / f"{name}.yaml")
    brief = [f"attack.{key}=1" for key in _FITTING if key in known]
    return [f"attack={name}", "attack.poison_ratio=0.05", *brief]


if __name__ == "__main__":
    main()
