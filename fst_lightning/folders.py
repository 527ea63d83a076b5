"""Lists folders that nobody vouches for, and stays inside them."""

from __future__ import annotations

import os
from pathlib import Path

from fst_lightning.printable import printable


def entries_inside(
    root: Path,
    directory: Path,
    *,
    follow_symlinks: bool = False,
    advice: str = "Copy the files into the folder.",
) -> list[os.DirEntry[str]]:
    """List the visible entries of a folder, sorted by name; refuse links that lead out.

    Every folder of a user is listed here, so that one rule holds for all of them: `root` itself
    may be a link, for the user has named it, and nothing below it may lead elsewhere.

    Args:
        root: The folder to stay in.
        directory: `root` or a folder below it.
        follow_symlinks: Whether symbolic links may lead out of `root`.
        advice: What to do about a link that leads out; a sentence.

    Raises:
        ValueError: If the folder cannot be listed, or a symbolic link leads out of `root`.
    """
    try:
        with os.scandir(directory) as listing:
            entries = [entry for entry in listing if not entry.name.startswith(".")]
        for entry in entries:
            entry.is_dir()  # raises for a link to itself
    except OSError as error:  # not allowed, or a link to itself
        raise ValueError(
            f"Could not list {printable(directory)}: {printable(error)}. Delete or repair what is "
            "in the way."
        ) from error
    inside = root.resolve()
    for entry in entries:
        if entry.is_symlink() and not follow_symlinks:
            target = Path(entry.path).resolve()
            if not target.is_relative_to(inside):
                raise ValueError(
                    f"{printable(entry.path)} is a symbolic link out of {printable(root)}, to "
                    f"{printable(target)}. {advice}"
                )
    return sorted(entries, key=lambda entry: entry.name)
