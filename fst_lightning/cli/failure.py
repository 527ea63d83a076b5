"""What a person reads when a run fails: one line, and where the rest is."""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path


def report_failure(error: Exception, overrides: list[str], folder: Path) -> None:
    """Print the reason in one line and keep the traceback in the run's folder.

    Args:
        error: what ended the run.
        overrides: of the command line.
        folder: of the run; gets ``failure.json`` and ``traceback.txt``.
    """
    message = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, ValueError | OSError):
        # Not a message written for the user: its type helps to understand it.
        message = f"{type(error).__name__}: {message}"
    log = folder / "traceback.txt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        failure = {"error": message, "overrides": overrides, "log": str(log)}
        (folder / "failure.json").write_text(json.dumps(failure, indent=1), encoding="utf-8")
    except OSError as problem:
        print(f"(could not write {log}: {problem})", file=sys.stderr)
    print(f"error: {message}\n(details: {log}; or run again with debug=true)", file=sys.stderr)
