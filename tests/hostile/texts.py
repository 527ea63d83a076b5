"""Faulty text files of the project's own: a sweep, a store, a curve, a configuration."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fst_lightning.checkpoints import Store
from fst_lightning.cli.resume import _overrides_of, is_finished
from fst_lightning.reports import read_curves, read_results
from tests.hostile.case import CANARY, Case, Kind
from tests.hostile.damage import damaged
from tests.reports.example import example

_CONFIG = OmegaConf.create({"attack": {"_target_": "a.B"}, "seed": 0})


def _passed_over(path: Path) -> ValueError:
    return ValueError(f"{path}: passed over.")


def _read_results(path: Path) -> object:
    results, error = read_results(path)
    if error is not None:
        raise ValueError(f"{path}: {error.rstrip('.')}.")
    return results


def _read_entry(path: Path) -> object:
    entries = Store(path).list()
    if not entries:
        raise _passed_over(path)
    return entries


def _read_curves(path: Path) -> object:
    curves = read_curves(path)
    if not curves:
        raise _passed_over(path)
    return curves


def _read_job(path: Path) -> object:
    if not is_finished(_CONFIG, path):
        raise _passed_over(path)
    return _overrides_of(path / "config.yaml")


def _job(path: Path, text: str) -> None:
    path.mkdir()
    _text(path / "config.yaml", text)
    _text(path / "results.json", "{}")


def _entry(path: Path, **changes: Any) -> None:
    description = {"attack": {"name": "badnets"}, "seed": 0}
    key = Store(path).key(description)
    facts = {"key": key, "created": "2025-01-01T00:00:00+00:00", "description": description}
    folder = path / "models" / key
    folder.mkdir(parents=True)
    (folder / "entry.json").write_text(json.dumps(facts | changes), encoding="utf-8")


def _text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", errors="surrogateescape")


RESULTS = Kind(
    "results.json", "results.json", _read_results, lambda p: _text(p, json.dumps(example()))
)
ENTRY = Kind("entry of a store", "store", _read_entry, _entry)
CURVES = Kind(
    "curves (CSV)", "metrics.csv", _read_curves, partial(_text, text="epoch,train/loss\n0,1.5\n")
)
CONFIG = Kind(
    "config.yaml of a run", "job", _read_job, partial(_job, text=OmegaConf.to_yaml(_CONFIG))
)
KINDS = (RESULTS, ENTRY, CURVES, CONFIG)


def _bomb() -> str:
    """Ten names of lists of ten of the name before: 10^10 items, to whoever copies them."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, 10):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]")
    return "\n".join(lines)


def _odd_files() -> Iterator[Case]:
    """What a text file can be besides a short regular file."""

    def long(path: Path) -> None:
        with path.open("r+b") as file:
            file.truncate(120_000_000)

    odd: dict[str, Callable[[Path], object]] = {
        "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
        "a link to /dev/stdin": lambda path: path.symlink_to("/dev/stdin"),
        "a link to itself": lambda path: path.symlink_to(path.name),
        "a link to nothing": lambda path: path.symlink_to("gone"),
        "a pipe": os.mkfifo,
        "a folder": Path.mkdir,
        "120 MB": long,
    }
    large: dict[str, str] = {
        "four million brackets": "[" * 4_000_000 + "]" * 4_000_000,
        "five million numbers": f"[{'1,' * 4_900_000}1]",
        "three million lists": f"[{'[],' * 3_300_000}[]]",
        "700,000 keys": f"{{{','.join(f'{chr(34)}{n:x}{chr(34)}:0' for n in range(700_000))}}}",
    }
    odd |= {fault: partial(_text, text=text) for fault, text in large.items()}
    said = {RESULTS: "cannot be read|is not valid|is no JSON"}
    parts = {ENTRY: ("entry.json",), CONFIG: ("config.yaml", "results.json")}
    for kind in KINDS:
        for part, (fault, change) in itertools.product(parts.get(kind, ("",)), odd.items()):
            # YAML is parsed in Python: as many megabytes of it would take minutes.
            if part == "config.yaml" and fault in large:
                continue

            def write(
                path: Path,
                kind: Kind = kind,
                part: str = part,
                change: Callable[[Path], object] = change,
            ) -> None:
                kind.write(path)
                file = next(iter(path.rglob(part))) if part else path
                if change is not long:
                    file.unlink()
                change(file)

            of = f"{part}: " if part else ""
            says: str | None = said.get(kind, "passed over")
            if kind is CONFIG and fault == "700,000 keys":
                says = None  # whether a run has ended shows any object
            yield Case(kind.name, of + fault, write, says, heavy=fault in large)
    # What is as long as is allowed, and works.
    yield Case(
        RESULTS.name,
        "10 MB of spaces",
        lambda path: _text(path, json.dumps(example()).ljust(10_000_000)),
        None,
    )


def cases() -> Iterator[Case]:
    """The corpus of text files."""
    for kind in KINDS:
        yield Case(kind.name, "nothing wrong", kind.write, None)
    results: dict[str, Any] = {
        "an escape sequence for a name": example(attack={"name": "\x1b[2J"}),
        "a formula for a name": example(attack={"name": "=cmd|'/c calc'!A1"}),
        "HTML for a name": example(attack={"name": "<script>alert(1)</script>"}),
    }
    for fault, value in results.items():
        yield Case(RESULTS.name, fault, partial(_text, text=json.dumps(value)), None)
    for fault, text in {
        "NaN": json.dumps(example()).replace("0.918", "NaN"),
        "a rate of 2": json.dumps(example()).replace("0.918", "2"),
        "a text for a rate": json.dumps(example()).replace("0.918", '"0.918"'),
        "a list": "[]",
        "nothing": "",
        "100,000 brackets": "[" * 100_000,
        "a number of 5,000 digits": json.dumps(example()).replace("0.918", "9" * 5_000),
        "bytes that are no UTF-8": "\udcff\udcfe",
        "another version": json.dumps(example() | {"schema_version": 2}),
        "a list of lists": json.dumps([[[]]] * 100_000),
        "an escape sequence for a key": json.dumps(example() | {"\x1b[2J": 1, "seed": "\x1b[2J"}),
    }.items():
        yield Case(RESULTS.name, fault, partial(_text, text=text))
    entries: dict[str, dict[str, Any]] = {
        "another key": {"key": "0" * 16},
        "a key that is a path": {"key": "../../x"},
        "another description": {"description": {"seed": 1}},
        "a description of text": {"description": "x"},
        "no date": {"created": "yesterday"},
        "a date before the year 1": {"created": "0001-01-01T00:00:00+23:59"},
        "a date that is a number": {"created": 3},
    }
    for fault, changes in entries.items():
        yield Case(ENTRY.name, fault, partial(_entry, **changes), "passed over")
    curves = {
        "no epoch": "train/loss\n1\n",
        "an epoch of NaN": "epoch,train/loss\nnan,1\n",
        "infinite values": "epoch,train/loss\n0,inf\n",
        "a field of 200,000 letters": f"epoch,train/loss\n0,{'x' * 200_000}\n",
        "a zero byte": "epoch,train/loss\n0,\0\n",
        "a formula": "epoch,train/loss\n0,=1+1\n",
        "bytes that are no UTF-8": "epoch,train/loss\n\udcff,1\n",
        "nothing": "",
    }
    for fault, text in curves.items():
        yield Case(CURVES.name, fault, partial(_text, text=text), "passed over")
    yamls: dict[str, str] = {
        "an object of Python": f"!!python/object/apply:os.mkdir [{CANARY}]",
        "a module of Python": "a: !!python/module:os\n",
        "a bomb of aliases": _bomb(),
        "a tab": "a:\n\t- b: [",
        "500 brackets": "[" * 500,
        "a list": "- a",
        "a number": "3",
        "an interpolation that is none": "attack: ${\n",
        "a reference to itself": "a: &a [*a]\n",
        "bytes that are no UTF-8": "a: \udcff",
        "an escape sequence": "a: \x1b[2J",
        "nothing": "",
        "an environment variable in a list": "attack: [${oc.env:HOME}]\nseed: 0\n",
        "an environment variable": "attack: ${oc.env:HOME}\nseed: 0\n",
    }
    for fault, text in yamls.items():
        yield Case(CONFIG.name, fault, partial(_job, text=text), "passed over")
    yield from _odd_files()
    yield from damaged(RESULTS)
    yield from damaged(CONFIG, "config.yaml", cuts_may_work=True)
    yield from damaged(CURVES, cuts_may_work=True)
