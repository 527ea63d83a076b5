"""Images in folders named by class."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import torch

from fst_lightning.data.class_folders import ClassFolders, choose_classes
from fst_lightning.data.held import Cache, held_images
from fst_lightning.data.images import ImageSet
from fst_lightning.data.placement import Placement
from fst_lightning.data.source import Source, check_at_least
from fst_lightning.data.split import stratified_split

_TRAIN = "train"
_TEST_NAMES = ("test", "val", "valid")

_Files = list[tuple[Path, int]]


class ImageFolder(Source):
    """Your own images: `root/train/CLASS/*.png` and `root/test/CLASS/*.png`, or `root/CLASS/*.png`.

    The test folder may also be called `val` or `valid`. Without `train` and test folders a share
    of every class is held out to test. Images may have any size: the centre square is resized.
    Class folders sort by number where all names are integers, else by name.

    Args:
        root: the folder.
        image_size: height and width in pixels, at least 1.
        classes: class names in the order of their labels, which may be fewer than there are
            folders; None takes all, sorted.
        mean: per channel, in units of [0, 1]; None is computed from the training images.
        std: per channel, above 0; None is computed from the training images.
        crop_padding: pixels added on each side before a random crop in training; 0 is no crop.
        horizontal_flip: whether training mirrors half of the images; wrong for signs, digits and
            text.
        test_fraction: share of every class that is held out, in (0, 1), where there is no test
            folder.
        split_seed: of the draw of the held-out images.
        follow_symlinks: whether symbolic links may lead out of `root`.
        cache: ``auto`` keeps the decoded images of large folders in `cache_folder`, where later
            runs find them, and streams what fits neither there nor into memory: such images are
            decoded whenever they are needed; ``off`` decodes in every run, into memory; ``stream``
            streams.
        cache_folder: None for no cache.
        placement: where the images lie while they are used: ``host``, ``device``, or ``auto``, on
            a GPU where they fit; streamed ones stay where they are.
        triggered_root: folder of triggered test images, in folders of their true classes, that
            take the place of an attack's trigger in the measurements; None for none.

    Raises:
        ValueError: for an argument out of its range.
    """

    def __init__(
        self,
        *,
        root: str | Path,
        image_size: int = 32,
        classes: Sequence[str | int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        crop_padding: int = 4,
        horizontal_flip: bool = True,
        test_fraction: float = 0.2,
        split_seed: int = 0,
        follow_symlinks: bool = False,
        cache: Cache = "auto",
        cache_folder: str | Path | None = None,
        placement: Placement = "auto",
        triggered_root: str | Path | None = None,
    ) -> None:
        super().__init__(
            image_size=image_size,
            mean=mean,
            std=std,
            crop_padding=crop_padding,
            horizontal_flip=horizontal_flip,
            placement=placement,
            triggered_root=triggered_root,
        )
        if not 0 < test_fraction < 1:
            raise ValueError(f"Expected `test_fraction` to be in (0, 1), but got {test_fraction}.")
        if isinstance(classes, str):
            raise ValueError(f"Expected `classes` to be a list of names, but got {classes!r}.")
        check_at_least("split_seed", split_seed, 0)
        if cache not in get_args(Cache):
            raise ValueError(
                f"Expected `cache` to be one of {', '.join(get_args(Cache))}, but got {cache!r}."
            )
        if cache == "stream" and placement == "device":
            raise ValueError(
                "Expected data.placement=auto or host with data.cache=stream, but got device: "
                "streamed images lie nowhere but in their files."
            )
        self._size = image_size
        self.root = Path(root).expanduser()
        # YAML reads the name of a folder like 3 as a number.
        self.classes = None if classes is None else tuple(str(name) for name in classes)
        self.test_fraction = test_fraction
        self.split_seed = split_seed
        self.follow_symlinks = follow_symlinks
        self.cache: Cache = cache
        self.cache_folder = None if cache_folder is None else Path(cache_folder).expanduser()

    def _load(self) -> tuple[ImageSet, ImageSet, tuple[str, ...]]:
        folders = ClassFolders(self.root, follow_symlinks=self.follow_symlinks)
        train_root, test_root = _find_parts(folders, self.root)
        found = folders.folders(train_root)
        names = choose_classes(found, self.classes, train_root)
        train = _list_files(folders, found, names)
        if test_root is None:
            labels = torch.tensor([label for _, label in train], dtype=torch.int64)
            kept, held_out = stratified_split(labels, self.test_fraction, self.split_seed)
            if not len(held_out):
                raise ValueError(
                    f"No class in {self.root} has 2 images, so that none can be held out to test."
                )
            test = [train[row] for row in held_out.tolist()]
            train = [train[row] for row in kept.tolist()]
        else:
            test = _list_files(folders, self._test_folders(folders, test_root, found), names)
        missing = set(range(len(names))) - {label for _, label in test}
        if missing:
            warnings.warn(
                f"No image to test of the classes {', '.join(names[i] for i in sorted(missing))}.",
                stacklevel=2,
            )
        paths = [[path for path, _ in files] for files in (train, test)]
        held = held_images(paths, self._size, self.cache, self.cache_folder)
        train_set, test_set = (
            ImageSet(images, torch.tensor([label for _, label in files], dtype=torch.int64))
            for images, files in zip(held, (train, test), strict=True)
        )
        return train_set, test_set, tuple(names)

    def _test_folders(
        self, folders: ClassFolders, test_root: Path, known: Mapping[str, Path]
    ) -> dict[str, Path]:
        found = folders.folders(test_root)
        unknown = sorted(set(found) - set(known))
        if unknown and self.classes is None:
            raise ValueError(
                f"{test_root} has classes that {self.root / _TRAIN} has not: "
                f"{', '.join(unknown)}. Delete them, or choose with `data.classes`."
            )
        if not set(found) & set(self.classes or known):
            raise ValueError(f"{test_root} has no class in common with {self.root / _TRAIN}.")
        return found


def _find_parts(folders: ClassFolders, root: Path) -> tuple[Path, Path | None]:
    found = folders.folders(root)
    if not found:
        raise ValueError(
            f"Found no folder in {root}. Expected one for each class, or train/ and test/ with "
            f"one for each class in them."
        )
    # A class may be called train, as in pictures of vehicles: a part has folders in it.
    parts = {
        name: found[name]
        for name in (_TRAIN, *_TEST_NAMES)
        if name in found and folders.folders(found[name])
    }
    tests = [path for name, path in parts.items() if name != _TRAIN]
    if _TRAIN in parts and tests:
        return parts[_TRAIN], tests[0]
    if parts or set(found) <= {_TRAIN, *_TEST_NAMES}:
        raise ValueError(
            f"Expected folders of classes in {root / _TRAIN} and in one of "
            f"{', '.join(str(root / name) for name in _TEST_NAMES)}, but found them only in "
            f"{', '.join(str(path) for path in parts.values()) or 'none'}. Without a part to test, "
            f"put the class folders into {root} itself."
        )
    return root, None


def _list_files(folders: ClassFolders, found: Mapping[str, Path], names: Sequence[str]) -> _Files:
    return [
        (path, label)
        for label, name in enumerate(names)
        if name in found
        for path in folders.images(found[name])
    ]
