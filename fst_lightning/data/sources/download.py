"""Errors of data sets that are downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def explain_missing(name: str, root: Path, by_hand: str) -> Iterator[None]:
    """Say where files belong when they are missing and cannot be downloaded.

    Args:
        name: Name of the data set.
        root: The folder that holds it.
        by_hand: The files to put there, and their source.

    Raises:
        FileNotFoundError: If the files cannot be found, downloaded or read.
    """
    try:
        yield
    # torchvision raises RuntimeError for missing and damaged files; URLError is an OSError.
    except (OSError, RuntimeError, EOFError, ValueError, SyntaxError) as error:
        raise FileNotFoundError(
            f"Could not load {name} from {root}: {error} To put the files there by hand: {by_hand}"
        ) from error
