"""What the framework costs in a step that computes next to nothing.

    python benchmarks/overhead.py

A linear network on 8x8 images takes a fraction of a millisecond a step, so that what stands around
the arithmetic shows: first Lightning's Trainer alone, then what a run of this project adds, one
after the other. Steps of the floor are subtracted; on a GPU, where steps of 2 ms are usual, it is
what the host must do in that time.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from benchmarks.machine import environment, spread, write
from benchmarks.setting import now
from fst_lightning import BackdoorModule, PurificationModule
from fst_lightning.attacks import Blended
from fst_lightning.callbacks import progress_callback
from fst_lightning.data import Fake, ImageSet
from fst_lightning.data.rows import EpochShuffle, Rows, as_gathered, training_loader
from fst_lightning.defenses import FST
from fst_lightning.pipelines.build.parts import quiet_lightning

BATCH, SIZE, CLASSES = 8, 8, 10


class Bare(L.LightningModule):
    """The least that Lightning asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Cross-entropy."""
        return functional.cross_entropy(self.net(batch[0].float() / 255), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def network() -> nn.Module:
    """As little arithmetic as a classifier can have."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, CLASSES))


def by_hand(images: ImageSet) -> None:
    """The floor: a loop over gathered batches."""
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    for rows in torch.split(torch.randperm(len(images)), BATCH):
        loss = functional.cross_entropy(net(images.images[rows].float() / 255), images.labels[rows])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()


def fit(module: L.LightningModule, loader: Any, folder: str, **options: Any) -> None:
    """An epoch with a Trainer that has nothing but the options."""
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
    }
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        enable_model_summary=False,
        default_root_dir=folder,
        **(quiet | options),
    )
    trainer.fit(module, loader)


def stages(images: ImageSet, folder: str) -> dict[str, Callable[[], None]]:
    """What is timed, from the least to a whole run."""
    rows = Rows(images, torch.zeros(len(images), dtype=torch.bool))

    def ours() -> Any:
        return training_loader(rows, BATCH, EpochShuffle(len(rows), 0))

    def backdoor() -> BackdoorModule:
        attack = Blended()
        attack.prepare(images.images, images.labels, CLASSES, 0)
        return BackdoorModule(network(), attack, seed=0)

    def fst() -> PurificationModule:
        return PurificationModule(network(), FST(alpha=0.2), seed=0)

    def all_of(title: str) -> dict[str, Any]:
        return {
            "logger": CSVLogger(folder, name="", version=""),
            "log_every_n_steps": 10,
            "enable_checkpointing": True,
            "enable_progress_bar": True,
            "callbacks": [
                progress_callback(title),
                ModelCheckpoint(folder, filename="last", enable_version_counter=False),
            ],
        }

    plain = DataLoader(rows, BATCH, shuffle=True, collate_fn=as_gathered)
    return {
        "a loop by hand": lambda: by_hand(images),
        "Lightning's Trainer, the least module": lambda: fit(Bare(), plain, folder),
        "the same, BackdoorModule": lambda: fit(backdoor(), ours(), folder),
        "the same, with curves, progress and checkpoints": lambda: fit(
            backdoor(), ours(), folder, **all_of("train")
        ),
        "PurificationModule with FST": lambda: fit(fst(), ours(), folder),
        "the same, with curves, progress and checkpoint": lambda: fit(
            fst(), ours(), folder, **all_of("tune")
        ),
    }


def main() -> None:
    """Measure, print and write."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer steps, one repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures into this file")
    options = parser.parse_args()
    about = environment("cpu", threads=1)
    steps, repeats = (100, 1) if options.quick else (1000, options.repeats)
    quiet_lightning()
    data = Fake(num_classes=CLASSES, num_train=steps * BATCH, num_test=1, image_size=SIZE).load()
    milliseconds: dict[str, list[float]] = {}
    with TemporaryDirectory() as folder:
        for turn in range(repeats + 1):
            for name, run in stages(data.train, folder).items():
                started = now("cpu")
                run()
                if turn:  # The first one is a warm-up.
                    spent = (now("cpu") - started) / steps * 1000
                    milliseconds.setdefault(name, []).append(spent)
    floor = median(milliseconds["a loop by hand"])
    for name, values in milliseconds.items():
        print(
            f"{name:50} {median(values):6.3f} ms a step ({spread(values)})  "
            f"over the floor {median(values) - floor:6.3f}"
        )
    write(options.json, {"environment": about, "steps": steps, "milliseconds": milliseconds})


if __name__ == "__main__":
    main()
