"""Find images in folders named by class."""

from __future__ import annotations

import os
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from fst_lightning.folders import entries_inside
from fst_lightning.image_files import FORMATS, is_image
from fst_lightning.printable import printable

_INTEGER = re.compile(r"-?[0-9]+")
_DEEPEST = 64
_MOST_NAMED = 5


class ClassFolders:
    """Lists folders and images below a root, and stays inside it.

    Hidden files and folders are skipped. A file is an image if its suffix says so, or, if the
    suffix is unusual, its content. `warn` reports other files.

    Args:
        root: The folder to stay in.
        follow_symlinks: Whether symbolic links may lead out of `root`.

    Raises:
        FileNotFoundError: If `root` does not exist.
        NotADirectoryError: If `root` is a file.
    """

    def __init__(self, root: Path, *, follow_symlinks: bool = False) -> None:
        if not root.exists():
            raise FileNotFoundError(
                f"Expected a folder of images at {root}, but nothing is there. Set `data.root`."
            )
        if not root.is_dir():
            raise NotADirectoryError(f"Expected a folder of images at {root}, but it is a file.")
        self._root = root
        self._follow_symlinks = follow_symlinks
        self._left_out: Counter[str] = Counter()

    def folders(self, directory: Path) -> dict[str, Path]:
        """Return the visible folders in a directory by name, sorted by name.

        Names are in Unicode's composed form (NFC), because some systems use another form.

        Args:
            directory: `root` or a folder below it.

        Raises:
            ValueError: If one is a symbolic link that leads out of `root`, has a name that can't
                be printed, as that of a class has to be, or if two names differ in their Unicode
                form alone.
        """
        found: dict[str, Path] = {}
        for entry in self._entries(directory):
            if not entry.is_dir():
                continue
            name, path = unicodedata.normalize("NFC", entry.name), Path(entry.path)
            if not name.isprintable():
                raise ValueError(
                    f"Expected the names of class folders to be printable text in UTF-8, but got "
                    f"{printable(path)}. Rename the folder."
                )
            if name in found:
                raise ValueError(
                    f"Expected folders with different names in {directory}, but two are called "
                    f"{name!r} and differ in their Unicode form alone. Merge or rename them."
                )
            found[name] = path
        return dict(sorted(found.items()))

    def images(self, directory: Path) -> list[Path]:
        """Return the images in a directory and all folders below it, sorted by path.

        A folder that several links lead to counts once.

        Args:
            directory: The folder of one class.

        Raises:
            ValueError: If there is none, a symbolic link leads out of `root`, or folders lie in
                folders more than 64 deep.
        """
        left_out: Counter[str] = Counter()
        found = sorted(self._walk(directory, set(), 0, left_out))
        if not found:
            seen = f" It holds {_counted(left_out)}." if left_out else ""
            raise ValueError(
                f"Found no image in the class folder {printable(directory)}.{seen} Formats that "
                f"are read: {', '.join(FORMATS)}. Add images, delete the folder, or leave it out "
                f"with `data.classes`."
            )
        self._left_out += left_out
        return found

    def has_images(self, directory: Path) -> bool:
        """Whether images lie in a directory itself, not in folders below it.

        Args:
            directory: `root` or a folder below it.
        """
        files = (Path(entry.path) for entry in self._entries(directory) if not entry.is_dir())
        return any(map(is_image, files))

    def warn(self, directory: Path) -> None:
        """Warn of the files below a directory that are in no class, or that `images` has left out.

        Args:
            directory: The folder that holds the class folders.
        """
        files = (Path(entry.path) for entry in self._entries(directory) if entry.is_file())
        beside = sum(map(is_image, files))
        if beside:
            warnings.warn(
                f"Left out of {printable(directory)}: {beside:,} images beside the class folders.",
                stacklevel=3,
            )
        if self._left_out:
            warnings.warn(
                f"Left out of the classes in {printable(directory)}: {_counted(self._left_out)}. "
                f"By content these files are no {', '.join(FORMATS[:-1])} or {FORMATS[-1]}. "
                f"Convert images of other formats, for example to PNG.",
                stacklevel=3,
            )
        self._left_out.clear()

    def _walk(
        self, directory: Path, seen: set[Path], depth: int, left_out: Counter[str]
    ) -> Iterable[Path]:
        # A link to a folder above would never end, and a few folders of links to each other would
        # take for ever: 30 with two links each make a thousand million paths.
        here = directory.resolve()
        if here in seen:
            return
        seen.add(here)
        if depth > _DEEPEST:
            raise ValueError(
                f"Expected folders at most {_DEEPEST} deep below a class, but got "
                f"{printable(directory)[:200]}... Put the images into the class folder itself."
            )
        for entry in self._entries(directory):
            path = Path(entry.path)
            if entry.is_dir():
                yield from self._walk(path, seen, depth + 1, left_out)
            elif not is_image(path):
                left_out[path.suffix.lower()] += 1
            # A broken link is listed, so that reading it names it; pipes and devices are not.
            elif entry.is_file() or not path.exists():
                yield path

    def _entries(self, directory: Path) -> list[os.DirEntry[str]]:
        return entries_inside(
            self._root,
            directory,
            follow_symlinks=self._follow_symlinks,
            advice="Copy the files, or set `data.follow_symlinks=true` (data=image_folder) if you "
            "trust them.",
        )


def _counted(suffixes: Mapping[str, int]) -> str:
    """Write numbers of files by their suffix: ``3 .avif, 1 without a suffix``."""
    common = Counter(suffixes).most_common()
    parts = [
        f"{number:,} {printable(suffix)[:20]}" if suffix else f"{number:,} without a suffix"
        for suffix, number in common[:_MOST_NAMED]
    ]
    rest = sum(number for _, number in common[_MOST_NAMED:])
    return ", ".join([*parts, f"{rest:,} others"] if rest else parts)


def sort_classes(names: Iterable[str]) -> list[str]:
    """Sort by number if all names are integers, and otherwise by name.

    Args:
        names: The names of the class folders.

    Example:
        >>> sort_classes(["10", "9", "0"]), sort_classes(["10", "9", "cat"])
        (['0', '9', '10'], ['10', '9', 'cat'])
    """
    ordered = sorted(names)
    if all(_INTEGER.fullmatch(name) for name in ordered):
        ordered.sort(key=int)
    return ordered


def choose_classes(
    found: Mapping[str, Path], chosen: Iterable[str] | None, directory: Path
) -> list[str]:
    """Return the class names in the order of their labels.

    Args:
        found: The class folders by name.
        chosen: The names to use, in order; None uses all, sorted.
        directory: Where they were found, for the error.

    Raises:
        ValueError: If a chosen name was not found or is given twice, or there are fewer than two
            classes.
    """
    names = (
        sort_classes(found)
        if chosen is None
        else [unicodedata.normalize("NFC", name) for name in chosen]
    )
    unknown = [name for name in names if name not in found]
    if unknown:
        raise ValueError(
            f"Expected `classes` to name folders in {directory}, but there is no "
            f"{', '.join(unknown)}. Found: {', '.join(sort_classes(found)) or 'none'}."
        )
    if len(set(names)) < len(names):
        raise ValueError(f"Expected each name in `classes` once, but got {names}.")
    if len(names) < 2:
        raise ValueError(
            f"Expected {directory} to hold one folder of images for each of at least 2 classes, "
            f"but found {', '.join(names) or 'none'}."
        )
    return names
