"""What a person reads when a run fails: one line, and where the rest is."""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

from fst_lightning.printable import printable

_NOTE, _LOG = "failure.json", "traceback.txt"


def forget_failure(folder: Path) -> None:
    """Remove what an earlier run in this folder failed of."""
    for name in (_NOTE, _LOG):
        (folder / name).unlink(missing_ok=True)


def has_failure(folder: Path) -> bool:
    """Whether it is known why the run in this folder failed."""
    return (folder / _NOTE).exists()


def report_failure(error: Exception, overrides: list[str], folder: Path) -> None:
    """Print the reason in one line and keep the traceback in the run's folder.

    Args:
        error: what ended the run.
        overrides: of the command line.
        folder: of the run; gets ``failure.json`` and ``traceback.txt``.
    """
    message = printable(" ".join(str(error).split())) or type(error).__name__
    if not isinstance(error, ValueError | OSError):
        # Not a message written for the user: its type helps to understand it.
        message = f"{type(error).__name__}: {message}"
    log = folder / _LOG
    failure = {"error": message, "overrides": overrides, "log": str(log)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Of the processes of a job the first one to fail knows why; the others miss it.
        with (folder / _NOTE).open("x", encoding="utf-8") as note:
            note.write(json.dumps(failure, indent=1))
        trace = "".join(traceback.format_exception(error))
        # A name that is no UTF-8 must not hide the error.
        log.write_text(trace, encoding="utf-8", errors="backslashreplace")
    except FileExistsError:
        return
    except OSError as problem:
        print(f"(could not write {log}: {problem})", file=sys.stderr)
    print(f"error: {message}\n(details: {log}; or run again with debug=true)", file=sys.stderr)
