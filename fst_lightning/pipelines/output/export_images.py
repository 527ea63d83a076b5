"""Writes the images of a run into folders, for other tools."""

from __future__ import annotations

import csv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from fst_lightning.data import BackdoorDataModule, ImageSet
from fst_lightning.data.class_folders import sort_classes
from fst_lightning.data.sources.exported import COLUMNS, INDEX


def check_export(folder: Path, data: BackdoorDataModule) -> None:
    """Refuse an export that would fail after the training.

    Args:
        folder: The folder to write to.
        data: The data module, set up for a training.

    Raises:
        FileExistsError: If the folder is not empty.
        TooLargeError: If the images are streamed, and don't fit into memory.
    """
    for rows in (data.data.train, data.data.test):
        rows.check_memory(f"export={folder}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"Expected `export` to name a folder that is empty or not there yet, but {folder} "
            "is not empty. Give another one, or delete it."
        )


def export_images(folder: Path, data: BackdoorDataModule) -> None:
    """Write the poisoned training set and the test set, clean and triggered, without loss.

    ``train/CLASS/ROW.png`` (by the label that is trained), ``test/CLASS/ROW.png`` and
    ``triggered/CLASS/ROW.png`` (both by the true label), and ``index.csv``, a line for each file.
    ``data=image_folder data.root=FOLDER`` reads the first two, and
    ``data.triggered_root=FOLDER/triggered`` the third.

    Args:
        folder: An empty or a new folder.
        data: The data module, set up for a training.
    """
    original, plan, test = data.data.train, data.plan, data.data.test.in_memory("export")
    train = data.delivered()
    counted = data.attack.counts_for_asr(test.labels).nonzero()[:, 0]
    triggered = ImageSet(_triggered(data, test.images[counted]), test.labels[counted])
    with _Writer(folder, data.data.classes) as writer:
        rows = torch.arange(len(train))
        writer.write("train", rows, train, original.labels, plan.poisoned, plan.cover)
        writer.write("test", torch.arange(len(test)), test, test.labels)
        if data.attack.has_trigger:
            writer.write("triggered", counted, triggered, triggered.labels)


@torch.no_grad()
def _triggered(data: BackdoorDataModule, images: Tensor) -> Tensor:
    attack = data.attack.cpu()
    stamped = torch.empty_like(images)
    for start in range(0, len(images), 512):
        part = slice(start, start + 512)
        stamped[part] = (attack(images[part] / 255) * 255).round().to(torch.uint8)
    return stamped


class _Writer:
    """Writes PNG files in parallel, and the list of them."""

    def __init__(self, folder: Path, classes: tuple[str, ...]) -> None:
        self.folder = folder
        # A class name is not trusted as a path, and the number keeps the order of the classes.
        safe = all(name and "/" not in name and not name.startswith(".") for name in classes)
        safe = safe and sort_classes(classes) == list(classes)
        self.names = classes if safe else tuple(str(label) for label in range(len(classes)))
        self.lines: list[tuple[object, ...]] = []

    def __enter__(self) -> _Writer:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.pool = ThreadPoolExecutor()
        return self

    def write(
        self,
        part: str,
        rows: Tensor,
        images: ImageSet,
        original: Tensor,
        poisoned: Tensor | None = None,
        cover: Tensor | None = None,
    ) -> None:
        for label in sorted(set(images.labels.tolist())):
            (self.folder / part / self.names[label]).mkdir(parents=True, exist_ok=True)
        width = len(str(int(rows.max()))) if len(rows) else 1
        files = []
        for place, row in enumerate(rows.tolist()):
            label = int(images.labels[place])
            file = Path(part, self.names[label], f"{row:0{width}}.png")
            flags = [0 if column is None else int(column[place]) for column in (poisoned, cover)]
            self.lines.append((file.as_posix(), row, int(original[place]), label, *flags))
            files.append((file, images.images[place]))
        # list() waits, and raises what went wrong.
        list(self.pool.map(self._save, files))

    def _save(self, item: tuple[Path, Tensor]) -> None:
        file, pixels = item
        Image.fromarray(pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()).save(
            self.folder / file
        )

    def __exit__(self, *error: object) -> None:
        self.pool.shutdown()
        with (self.folder / INDEX).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows(self.lines)
