"""Keeps finished runs as small records in ``results/``, from which the tables of the docs are made.

    python -m benchmarks.records results/digits outputs/purify/*  # keep these runs

A record is the run's ``results.json`` without the folders of one machine, with the command, the
commit and the hardware that produced it. ``python -m benchmarks.tables`` renders the tables.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.machine import processor, write

_LOCAL = {"data.root": "DIR", "checkpoint": "FILE", "detector_reference": "DIR"}
"""Keys of the command line whose values are paths of one machine, and what stands for them."""
_DROPPED = re.compile(r"(paths\..*|hydra\..*|resume|num_workers|logger|report\..*)")
"""Keys that change where a run writes, but not its figures."""
_FORGOTTEN = ("checkpoints", "exported", "overrides")


def record_of(results: dict[str, Any], *, commit: str, hardware: str, date: str) -> dict[str, Any]:
    """Turn the content of a ``results.json`` into a record.

    Args:
        results: what the run wrote.
        commit: the commit of the code that ran; the run's own record of it wins.
        hardware: the machine; ``2 cores of an AMD EPYC 9B45``.
        date: the day on which the run ended, ``YYYY-MM-DD``.

    Raises:
        ValueError: If the commit is not known.
    """
    commit = results["environment"].get("commit") or commit
    if not commit:
        raise ValueError(
            "Expected `environment.commit` in results.json, but got none. Pass --commit."
        )
    return {
        "command": command_of(results["task"], results.get("overrides", ())),
        "commit": commit,
        "date": date,
        "hardware": hardware,
        **{name: value for name, value in results.items() if name not in _FORGOTTEN},
    }


def command_of(task: str, overrides: Sequence[str]) -> str:
    """Return the command line of a run, without the paths of one machine.

    Example:
        >>> command_of("purify", ["attack=blended", "data.root=/home/me/images", "paths.store=x"])
        'python purify.py attack=blended data.root=DIR'
    """
    words = [f"python {task}.py"]
    for override in overrides:
        key, _, value = override.partition("=")
        if _DROPPED.fullmatch(key.lstrip("+~")):
            continue
        words.append(f"{key}={_LOCAL[key]}" if key in _LOCAL else f"{key}={value}")
    return " ".join(words)


def name_of(results: dict[str, Any]) -> str:
    """Return the file name of a record: what was attacked, how it was purified, and the seed.

    Example:
        >>> name_of({"attack": {"name": "blended", "poison_ratio": 0.01}, "defense": None,
        ...          "model": {"name": "resnet18"}, "seed": 0})
        'resnet18-blended_0.01-train-0'
    """
    attack, defense = results["attack"], results["defense"]
    ratio = attack.get("poison_ratio")
    attacked = attack["name"] if ratio is None else f"{attack['name']}_{ratio:g}"
    parts = (results["model"]["name"], attacked, (defense or {"name": "train"})["name"])
    return "-".join((*parts, str(results["seed"])))


def keep(folder: Path, runs: Sequence[Path], *, commit: str = "", hardware: str = "") -> list[Path]:
    """Write one record for every run, and return their paths.

    A record of the same name is only replaced if it is of the same command.

    Raises:
        ValueError: If a run has no ``results.json``, if its commit is unknown, or if two different
            commands would get the same name.
    """
    kept = []
    for run in runs:
        file = run if run.is_file() else run / "results.json"
        if not file.is_file():
            raise ValueError(f"Expected a finished run in {run}, but it has no results.json.")
        results = json.loads(file.read_text(encoding="utf-8"))
        date = datetime.fromtimestamp(file.stat().st_mtime, UTC).date().isoformat()
        record = record_of(results, commit=commit, hardware=hardware or machine(), date=date)
        path = _free(folder, name_of(results), record["command"])
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, record)
        kept.append(path)
    return kept


def _free(folder: Path, name: str, command: str) -> Path:
    """The first of NAME.json, NAME-2.json, ... that is free or holds the same command."""
    number = 1
    while True:
        path = folder / (f"{name}.json" if number == 1 else f"{name}-{number}.json")
        if not path.exists() or json.loads(path.read_text("utf-8"))["command"] == command:
            return path
        number += 1


def machine() -> str:
    """This machine, in words."""
    return f"{os.cpu_count()} cores of {processor()}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and keep the runs."""
    parser = argparse.ArgumentParser(description="Keep finished runs as records.")
    parser.add_argument("folder", type=Path, help="where the records go: results/NAME")
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs, or results.json files")
    parser.add_argument("--commit", default="", help="of the code that ran, if it did not say so")
    parser.add_argument("--hardware", default="", help="the machine; this one is the default")
    given = parser.parse_args(arguments)
    for path in keep(given.folder, given.runs, commit=given.commit, hardware=given.hardware):
        print(path)


if __name__ == "__main__":
    main()
