"""The list of a data set's images that ``export=FOLDER`` writes beside them."""

from __future__ import annotations

import csv
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from fst_lightning.printable import printable
from fst_lightning.text_files import open_text

INDEX = "index.csv"
_MOST_BYTES = 200_000_000  # of some million lines
COLUMNS = ("file", "row", "original_label", "given_label", "poisoned", "cover")


def changed_files(root: Path, files: Iterable[Path]) -> Tensor | None:
    """Look up which images an attack has changed, if the folder records it.

    Args:
        root: The folder, as ``export=`` wrote it; a list with other columns is ignored.
        files: Images below `root`.

    Returns:
        ``(N,)`` bool, true for poisoned and cover rows; None if the folder has no list.

    Raises:
        ValueError: If the list can't be read, or is a link out of `root`.
    """
    index = root / INDEX
    if not index.is_file():
        return None
    if not index.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"Expected {index} to lie in {root}, but it is a link out. Copy the file.")
    try:
        with open_text(index, _MOST_BYTES, newline="") as lines:
            reader = csv.DictReader(lines)
            if not set(COLUMNS) <= set(reader.fieldnames or ()):
                return None
            changed = {
                unicodedata.normalize("NFC", line["file"])
                for line in reader
                if "1" in (line["poisoned"], line["cover"])
            }
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"Could not read {index}, which says which images an attack has changed: "
            f"{printable(error)}. Mend the file, or delete it if the images are clean."
        ) from error
    names = (unicodedata.normalize("NFC", file.relative_to(root).as_posix()) for file in files)
    return torch.tensor([name in changed for name in names], dtype=torch.bool)
