"""Triggered test images from a folder."""

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
    """Read images that already carry a trigger, from folders of their *true* classes.

    The name of a folder is a class name of the data set or its number, counted from 0, so that test
    folders of other tools (``bd_test_dataset/3/17.png``) can be read directly.

    Args:
        root: The folder.
        classes: Names of the data set's classes, in the order of their labels.
        size: Height and width to resize to, in pixels.
        follow_symlinks: Whether symbolic links may lead out of `root`.
        cache: How the images are held; they are not stored for later runs.

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
