"""What a person reads when a run fails: one line, and where the rest is."""

from __future__ import annotations

import errno
import json
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig

from fst_lightning.cli.paths import names_relative_path, relative_paths
from fst_lightning.printable import printable

_NOTE, _LOG = "failure.json", "traceback.txt"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What gloo and NCCL say if a process on the other side is gone.
_LOST = re.compile(
    r"gloo/transport|Connection (closed|reset) by peer|Broken pipe|NCCL (error|communicator)"
    r"|recvValue failed|Socket Timeout"
)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)


def forget_failure(folder: Path) -> None:
    """Remove what an earlier run in this folder failed of."""
    for name in (_NOTE, _LOG):
        (folder / name).unlink(missing_ok=True)


def has_failure(folder: Path) -> bool:
    """Whether it is known why the run in this folder failed."""
    return (folder / _NOTE).exists()


def report_failure(
    error: Exception, overrides: list[str], folder: Path, cfg: DictConfig | None = None
) -> None:
    """Print the reason in one line and keep the traceback in the run's folder.

    Args:
        error: The reason.
        overrides: Of the command line.
        folder: Of the run; gets ``failure.json`` and ``traceback.txt``.
        cfg: The configuration of the run.
    """
    message = explained(error, overrides, cfg)
    log = folder / _LOG
    where = f"details: {log}; or run again with debug=true"
    failure = {"error": message, "overrides": overrides, "log": str(log)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Of the processes of a job the first one to fail knows why; the others miss it.
        _write_once(folder / _NOTE, json.dumps(failure, indent=1))
        trace = "".join(traceback.format_exception(error))
        # A name that is no UTF-8 must not hide the error.
        log.write_text(trace, encoding="utf-8", errors="backslashreplace")
    except FileExistsError:
        return
    except OSError as problem:
        where = f"no details in {log}: {problem.strerror}; run again with debug=true"
    print(f"error: {message}\n({where})", file=sys.stderr)


def _write_once(path: Path, text: str) -> None:
    """Write a file that is not there yet, or leave none."""
    with path.open("x", encoding="utf-8") as file:
        try:
            file.write(text)
            file.flush()
        except OSError:
            path.unlink(missing_ok=True)
            raise


def explained(
    error: Exception, overrides: Sequence[str] = (), cfg: DictConfig | None = None
) -> str:
    """Say in one line what happened, and what to do about it if that is known here.

    Args:
        error: What ended the run.
        overrides: Of the command line, which may name files by relative paths.
        cfg: The configuration of the run, whose YAML files and variables may do so, too.
    """
    message = printable(" ".join(str(error).split())) or type(error).__name__
    for_users = isinstance(error, ValueError | OSError | FloatingPointError | HydraException)
    # Our own, which says what to install.
    for_users |= isinstance(error, ImportError) and message.startswith("Expected ")
    # Lightning's, by name: importing it here would take seconds.
    if not for_users and type(error).__name__ != "MisconfigurationException":
        message = f"{type(error).__name__}: {message}"
    if isinstance(error, RuntimeError) and _LOST.search(str(error)):
        message = (
            "Another process of this run has ended, and this one cannot go on without it. Its own "
            "message, above or in its log, says why; if there is none, the system may have killed "
            "it because memory ran out."
        )
    advice = [" ".join(note.split()) for note in getattr(error, "__notes__", [])]
    missing = isinstance(error, FileNotFoundError | NotADirectoryError)
    named = cfg is not None and names_relative_path(message, cfg)
    if missing and (named or relative_paths(overrides)):
        hydra = HydraConfig.get() if HydraConfig.initialized() else None
        start = Path.cwd() if hydra is None else hydra.runtime.cwd
        advice.append(f"Relative paths start at {start}.")
    if isinstance(error, OSError) and error.errno in _FULL:
        advice.append(
            "Make room there, or write elsewhere with hydra.run.dir= and paths.store=; "
            "resume=true then goes on from the last checkpoint."
        )
    elif isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        advice.append("Give the folder a shorter name with hydra.run.dir= or hydra.sweep.subdir=.")
    elif isinstance(error, OSError) and error.errno in _FORBIDDEN:
        advice.append("Make it writable, or choose another with hydra.run.dir= or paths.store=.")
    if not advice:
        return message
    return " ".join([message if message.endswith(".") else f"{message}.", *advice])
