"""How fast images come out of a folder: streamed, mapped from the cache and in memory.

    python benchmarks/streaming.py --root DIR

``DIR`` holds a folder of images for each class. Every case loads the training images once more,
as a training does; then it trains a network with them for one epoch, on the CPU.
"""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

WIDTH = 16
BATCH = 128
CASES = (("off", 0), ("auto", 0), ("stream", 0), ("stream", 2))


def main() -> None:
    """Measure, print and write."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="a folder of class folders")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3, help="how often every case is measured")
    parser.add_argument("--json", type=Path, help="write the figures into this file")
    options = parser.parse_args()

    import fst_lightning.data.residency as held
    from benchmarks.machine import environment, write
    from fst_lightning.pipelines.build.parts import quiet_lightning

    quiet_lightning()
    held.MIN_FILES = 0  # a small folder is kept as a large one would be
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        for _ in range(options.repeats):  # the cases take turns
            for cache, workers in CASES:
                rows.append(case(options.root, options.image_size, cache, workers, folder))
                print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    write(options.json, {"environment": environment("cpu"), "rows": rows})


def case(root: Path, image_size: int, cache: Any, workers: int, folder: str) -> dict[str, Any]:
    """One case, once."""
    from benchmarks.machine import bare_trainer
    from fst_lightning import BackdoorDataModule, BackdoorModule
    from fst_lightning.attacks import Blended
    from fst_lightning.data import ImageFolder
    from fst_lightning.models import resnet18

    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    started = time.perf_counter()
    source = ImageFolder(
        root=root, image_size=image_size, cache=cache, cache_folder=folder, mean=mean, std=std
    )
    attack = Blended(poison_ratio=0.1)
    data = BackdoorDataModule(source, attack, batch_size=BATCH, num_workers=workers)
    data.setup()
    loaded = time.perf_counter()
    count = sum(len(labels) for _, labels, *_ in data.train_dataloader())
    read = time.perf_counter()
    net = resnet18(num_classes=data.data.num_classes, width=WIDTH)
    module = BackdoorModule(
        net, attack, crop_padding=4, horizontal_flip=True, seed=0, mean=mean, std=std
    )
    trainer = bare_trainer(precision="bf16-mixed", default_root_dir=folder)
    begun = time.perf_counter()
    trainer.fit(module, data)
    trained = time.perf_counter()
    return {
        "cache": cache,
        "workers": workers,
        "images": count,
        "load s": round(loaded - started, 2),
        "read images/s": round(count / (read - loaded)),
        "train images/s": round(count / (trained - begun)),
    }


if __name__ == "__main__":
    main()
