"""Images in folders named by class."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from fst_lightning.data.class_folders import ClassFolders, choose_classes
from fst_lightning.data.images import ImageSet
from fst_lightning.data.placement import Placement
from fst_lightning.data.residency import Cache, held_images
from fst_lightning.data.sources.exported import INDEX, changed_files
from fst_lightning.data.sources.source import Source
from fst_lightning.data.split import stratified_split
from fst_lightning.validate import check_choice, check_number

_TRAIN, _TEST = ("train", "training"), ("test", "testing", "val", "valid", "validation")
"""Names of the two parts, in the order of preference; case does not count."""

_SET = re.compile(r"[ _-]?(set|data|images)$")

_Files = list[tuple[Path, int]]


class ImageFolder(Source):
    """Your own images: `root/train/CLASS/*.png` and `root/test/CLASS/*.png`, or `root/CLASS/*.png`.

    The training folder may also be called `training`, the test folder `testing`, `val`, `valid` or
    `validation`, each in upper or lower case and with `set`, `data` or `images` at its end. Without
    such folders a share of every class is held out to test. Images may have any size: the center
    square is resized. Class folders sort by number if all names are integers, otherwise by name.

    A file counts as an image by its suffix, or if that is unusual by its content; a warning counts
    the files that are left out.

    Args:
        root: The folder.
        image_size: Height and width in pixels, at least 1.
        classes: Class names in the order of their labels, which may be fewer than there are
            folders; None takes all, sorted.
        mean: Mean per channel, in units of [0, 1]; None computes it from the training images.
        std: Standard deviation per channel, greater than 0; None computes it from the training
            images.
        crop_padding: Pixels added on each side before a random crop in training; 0 is no crop.
        horizontal_flip: Whether training mirrors half of the images; wrong for signs, digits and
            text.
        test_fraction: Share of every class that is held out, in (0, 1), where there is no test
            folder.
        split_seed: Seed of the draw of the held-out images.
        follow_symlinks: Whether symbolic links may lead out of `root`.
        cache: ``auto`` keeps the decoded images of large folders in `cache_folder`, where later
            runs find them, and streams what fits neither there nor into memory: such images are
            decoded whenever they are needed; ``off`` decodes in every run, into memory; ``stream``
            streams.
        cache_folder: None for no cache.
        placement: Memory that holds the images: ``host``, ``device``, or ``auto``, which is a GPU
            if they fit; streamed images stay in their files.
        triggered_root: Folder of triggered test images, in folders of their true classes, which
            replace the attack's trigger at test; None for none.
        channels: 3, or 1 for gray images, for networks that take one channel.

    Raises:
        ValueError: If an argument is out of its range.
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
        channels: int = 3,
    ) -> None:
        super().__init__(
            image_size=image_size,
            mean=mean,
            std=std,
            crop_padding=crop_padding,
            horizontal_flip=horizontal_flip,
            placement=placement,
            triggered_root=triggered_root,
            channels=channels,
        )
        check_number("test_fraction", test_fraction, low_open=True, high=1, high_open=True)
        if isinstance(classes, str):
            raise ValueError(f"Expected `classes` to be a list of names, but got {classes!r}.")
        check_number("split_seed", split_seed, low=0, whole=True)
        check_choice("cache", cache, Cache)
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
        if self.classes is None:
            _refuse_parts(folders, found)
        names = choose_classes(found, self.classes, train_root)
        train = _list_files(folders, train_root, found, names)
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
            tests = self._test_folders(folders, train_root, test_root, found)
            test = _list_files(folders, test_root, tests, names)
        missing = set(range(len(names))) - {label for _, label in test}
        if missing:
            warnings.warn(
                f"No image to test of the classes {', '.join(names[i] for i in sorted(missing))}.",
                stacklevel=2,
            )
        paths = [[path for path, _ in files] for files in (train, test)]
        self._changed = changed_files(self.root, paths[0])
        if self._changed is not None and self._changed.any():
            warnings.warn(
                f"{self.root / INDEX} marks {int(self._changed.sum()):,} of {len(train):,} "
                f"training images as changed by an attack: the defender's clean images are drawn "
                f"from the others.",
                stacklevel=2,
            )
        held = held_images(paths, self._size, self.cache, self.cache_folder)
        train_set, test_set = (
            ImageSet(images, torch.tensor([label for _, label in files], dtype=torch.int64))
            for images, files in zip(held, (train, test), strict=True)
        )
        return train_set, test_set, tuple(names)

    def _test_folders(
        self, folders: ClassFolders, train_root: Path, test_root: Path, known: Mapping[str, Path]
    ) -> dict[str, Path]:
        found = folders.folders(test_root)
        unknown = sorted(set(found) - set(known))
        if unknown and self.classes is None:
            spelled = {name.strip().casefold(): name for name in known}
            pairs = [(name, spelled.get(name.strip().casefold())) for name in unknown]
            alike = [f"{name!r} is {other!r} there" for name, other in pairs if other]
            hint = f" Upper case and spaces count: {', '.join(alike)}." if alike else ""
            raise ValueError(
                f"{test_root} has classes that {train_root} has not: {', '.join(unknown)}.{hint} "
                f"Delete or rename them, or choose with `data.classes`."
            )
        if not set(found) & set(self.classes or known):
            raise ValueError(f"{test_root} has no class in common with {train_root}.")
        return found


def _find_parts(folders: ClassFolders, root: Path) -> tuple[Path, Path | None]:
    """Return the folders to train on and to test on; `root` and None if it has no parts."""
    found = folders.folders(root)
    if not found:
        raise ValueError(
            f"Found no folder in {root}. Expected one for each class, or train/ and test/ with "
            f"one for each class in them."
        )
    named = {name: path for name, path in found.items() if _part(name)}
    # A class may be called train, as in pictures of vehicles: a part has folders in it.
    parts = {name: path for name, path in named.items() if folders.folders(path)}
    train, test = ([name for name in parts if _part(name) in names] for names in (_TRAIN, _TEST))
    if not parts and len(named) < len(found):
        if len(found) == 1:
            _refuse_wrapped(folders, found)
        return root, None
    if len(train) != 1 or not test:
        raise ValueError(
            f"Expected class folders in one of {' or '.join(_TRAIN)} and in one of "
            f"{', '.join(_TEST)} below {root}, but found them only in "
            f"{', '.join(str(path) for path in parts.values()) or 'none'}. Without a part to test, "
            f"put the class folders into {root} itself."
        )
    test.sort(key=lambda name: _TEST.index(_part(name)))
    if len(test) > 1:
        if _part(test[0]) == _part(test[1]):
            raise ValueError(
                f"Expected one folder to test on in {root}, but got {test[0]} and {test[1]}. "
                f"Rename or merge them."
            )
        rest = ", ".join(str(parts[name]) for name in test[1:])
        warnings.warn(f"{parts[test[0]]} is the test set. Left out: {rest}.", stacklevel=2)
    return parts[train[0]], parts[test[0]]


def _part(name: str) -> str:
    """The usual name of a part, or nothing for the folder of a class."""
    plain = _SET.sub("", name.strip().casefold())
    return plain if plain in (*_TRAIN, *_TEST) else ""


def _refuse_wrapped(folders: ClassFolders, found: Mapping[str, Path]) -> None:
    """Name the folder inside that holds the parts, as archives often have one around all."""
    (path,) = found.values()
    if any(map(_part, folders.folders(path))):
        raise ValueError(
            f"Expected the parts of a data set in {path.parent}, but they are in {path}. "
            f"Set data.root to it."
        )


def _refuse_parts(folders: ClassFolders, found: Mapping[str, Path]) -> None:
    """Refuse folders that look like parts with the classes in them, whatever they are called."""
    below: dict[frozenset[str], str] = {}
    for name, path in found.items():
        inside = frozenset(folders.folders(path))
        if not inside or folders.has_images(path):
            continue
        if inside in below:
            raise ValueError(
                f"Expected a folder for each class in {path.parent}, but {below[inside]} and "
                f"{name} hold no image and the same folders: {', '.join(sorted(inside)[:5])}. If "
                f"they are the parts of a data set, call them train and test; if they are classes, "
                f"say data.classes=[...]."
            )
        below[inside] = name


def _list_files(
    folders: ClassFolders, directory: Path, found: Mapping[str, Path], names: Sequence[str]
) -> _Files:
    files = [
        (path, label)
        for label, name in enumerate(names)
        if name in found
        for path in folders.images(found[name])
    ]
    folders.warn(directory)
    return files
