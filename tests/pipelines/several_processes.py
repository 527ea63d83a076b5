"""What each of several processes does in `test_processes.py`: attacks, then defenses.

Started by torchrun, for Lightning asks for its rank when it is imported.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from torch import Tensor, nn

from fst_lightning.checkpoints import read_checkpoint
from fst_lightning.configuration import groups
from fst_lightning.pipelines import run_pipeline
from tests.runs import make_run

BATCH_SIZE = 12
"""Of all processes together."""


class Plain(nn.Sequential):
    """A small network without BatchNorm, whose batches may be cut in two."""

    def __init__(self, num_classes: int, **options: Any) -> None:
        super().__init__()
        self.add_module("conv", nn.Conv2d(3, 8, 3, padding=1))
        self.add_module("relu", nn.ReLU())
        self.add_module("pool", nn.AdaptiveAvgPool2d(4))
        self.add_module("flatten", nn.Flatten())
        self.add_module("head", nn.Linear(128, num_classes))


def lines(processes: int, network: str) -> list[str]:
    """What all runs have in common."""
    devices = [f"trainer.devices={processes}"] + (["trainer.strategy=ddp"] * (processes > 1))
    batch = BATCH_SIZE // processes
    plain = ["model._target_=tests.pipelines.several_processes.Plain"] if network == "plain" else []
    return [
        *devices,
        *plain,
        "trainer.accelerator=cpu",
        f"training.batch_size={batch}",
        "report.enabled=false",
        "data.num_test=31",  # does not divide: no row may be counted twice
        "data.image_size=16",
        "attack.poison_ratio=0.2",
    ]


def run(folder: Path, processes: int, network: str, task: str, group: str, name: str) -> Any:
    """The figures and weights of one run, or the error that refused it."""
    common = lines(processes, network)
    if name == "none":
        common = [line for line in common if "poison_ratio" not in line]
    if task == "purify":
        common += [f"tuning.batch_size={BATCH_SIZE // processes}", "attack=badnets"]
        common += ["tuning.clean_ratio=1.0"]  # 60 images, which divide by 4
    where = folder / f"{network}-{name}"
    made = make_run(task, where, f"{group}={name}", *common, store=folder / f"store-{network}")
    try:
        results = run_pipeline(made)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
    finally:
        HydraConfig.instance().cfg = None
    part = "purified" if task == "purify" else "backdoored"
    path = Path(results["checkpoints"][part])
    if processes > 1:
        torch.distributed.barrier()  # The first process writes it.
    return {
        "weights": dict(read_checkpoint(path).state_dict),
        "counts": {
            name: [round(rate * 10_000) for rate in score.values() if rate is not None]
            for name, score in (("before", results["before"]), ("after", results["after"] or {}))
        },
        "num_poisoned": results["data"]["num_poisoned"],
        "num_processes": results["environment"]["num_processes"],
    }


def cases() -> list[tuple[str, str, str]]:
    """Task, group and option of every run."""
    attacks = [("train", "attack", name) for name in groups()["attack"]]
    return attacks + [("purify", "defense", name) for name in groups()["defense"]]


def all_cases(folder: Path, processes: int, keys: Sequence[str] = ()) -> dict[str, Any]:
    """All runs, or those named, by option; with BatchNorm where it has to be."""
    results = {}
    for task, group, name in cases():
        if keys and f"{group} {name}" not in keys:
            continue
        with contextlib.redirect_stdout(io.StringIO()):
            found = run(folder, processes, "plain", task, group, name)
            if "BatchNorm" in found.get("error", ""):
                found = run(folder, processes, "normed", task, group, name) | {"normed": True}
        results[f"{group} {name}"] = found
    return results


def difference(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """The largest between two states."""
    assert left.keys() == right.keys()
    return max(float((left[name].double() - right[name].double()).abs().max()) for name in left)


if __name__ == "__main__":
    torch.set_num_threads(1)
    here = Path(sys.argv[1])
    found = all_cases(here, int(os.environ["WORLD_SIZE"]), sys.argv[2:])
    torch.save(found, here / f"{os.environ['RANK']}.pt")
