"""Triggered test images that somebody else has made."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import torch

from fst_lightning.data.class_folders import ClassFolders
from fst_lightning.data.images import ImageSet
from fst_lightning.data.residency import Cache, held_images


def read_triggered(
    root: Path,
    classes: Sequence[str],
    size: int,
    *,
    follow_symlinks: bool = False,
    cache: Cache = "auto",
) -> ImageSet:
    """Read images that carry a trigger already, from folders of their *true* classes.

    A folder is called by a class name of the data set or by its number, counted from 0: the test
    folders that other tools write (``bd_test_dataset/3/17.png``) can be read as they are.

    Args:
        root: The folder.
        classes: Names of the data set's classes, in the order of their labels.
        size: Height and width to resize to, in pixels.
        follow_symlinks: Whether symbolic links may lead out of `root`.
        cache: Where the images are held; none are kept for later runs.

    Raises:
        ValueError: If a folder is of no class, or holds no image.
    """
    listing = ClassFolders(root, follow_symlinks=follow_symlinks)
    found = listing.folders(root)
    labels_of = {str(label): label for label in range(len(classes))}
    labels_of |= {unicodedata.normalize("NFC", name): i for i, name in enumerate(classes)}
    unknown = [name for name in found if name not in labels_of]
    if unknown or not found:
        raise ValueError(
            f"Expected folders of the true classes in data.triggered_root={root}, by name or by "
            f"number from 0 to {len(classes) - 1}, but got "
            f"{', '.join(map(repr, unknown[:5])) or 'no folder'}."
        )
    files = [(path, labels_of[name]) for name in found for path in listing.images(found[name])]
    listing.warn(root)
    (images,) = held_images([[path for path, _ in files]], size, cache, folder=None)
    return ImageSet(images, torch.tensor([label for _, label in files], dtype=torch.int64))
