"""Collect the runs of a sweep, and average each experiment over its seeds."""

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from fst_lightning.reports.results.detection import recovered_trigger
from fst_lightning.reports.results.files import read_json, read_results
from fst_lightning.reports.results.notes import shortfalls
from fst_lightning.reports.results.settings import Setting, settings_of

VALUES = (
    "before.ca",
    "before.asr",
    "before.ra",
    "after.ca",
    "after.asr",
    "after.ra",
    "der",
    "seconds.train",
    "seconds.purify",
    "seconds.evaluate",
    "peak_memory_mb.train",
    "peak_memory_mb.purify",
    "data.num_clean_tuning",
    "change.ca",
    "recovered.before",
    "recovered.after",
    "detection.before.p_value",
    "detection.after.p_value",
    "shift.head_cosine",
    "shift.feature_cosine",
)
"""The numbers of a run by their place in results.json. ``change.ca`` is the change in clean
accuracy, ``recovered.*`` how often the trigger that a search recovered works on test images."""


@dataclass(frozen=True)
class Run:
    """One run that left results.

    Attributes:
        job: its folder, relative to the sweep's.
        seed: its seed.
        settings: everything else that was chosen.
        values: the numbers of `VALUES`; fractions, seconds, MiB, images, or None.
        implanted: whether the attack took; None where there was none.
        shortfalls: what the run set out to do and did not do; with any, it is no success.
    """

    job: str
    seed: int
    settings: Mapping[str, Setting]
    values: Mapping[str, float | None]
    implanted: bool | None
    shortfalls: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """One run that left none.

    Attributes:
        job: its folder, relative to the sweep's.
        error: why, as it was written.
        overrides: what was asked of it.
        log: the file that tells more.
    """

    job: str
    error: str
    overrides: tuple[str, ...] = ()
    log: str | None = None

    @property
    def line(self) -> str:
        """The error in one line: the last of a traceback, else the first; 200 characters."""
        lines = [line.strip() for line in self.error.splitlines() if line.strip()]
        if not lines:
            return "no reason given"
        line = lines[-1] if lines[0].startswith("Traceback") else lines[0]
        return line if len(line) <= 200 else line[:197] + "..."


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over the `n` runs that have the value.

    Both are None without values; `std` is None for a single one.
    """

    mean: float | None
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float | None]) -> "Spread":
        r"""Average what is there: :math:`s^2 = \frac{1}{n - 1} \sum_i (x_i - \bar x)^2`.

        Example:
            >>> Spread.of([1.0, None, 3.0])
            Spread(mean=2.0, std=1.4142135623730951, n=2)
        """
        known = [value for value in values if value is not None]
        return cls(
            mean(known) if known else None, stdev(known) if len(known) > 1 else None, len(known)
        )


@dataclass(frozen=True)
class Group:
    """The runs of one experiment, which differ by their seed.

    Attributes:
        settings: what they have in common.
        seeds: one a run, in the runs' order.
        not_implanted: in how many of them the attack did not take.
        shortfalls: what the runs set out to do and did not do, by the number of runs.
        values: the spread of each of `VALUES`.
        jobs: the folders of the runs, in the same order.
    """

    settings: Mapping[str, Setting]
    seeds: tuple[int, ...]
    not_implanted: int
    values: Mapping[str, Spread]
    shortfalls: Mapping[str, int] = field(default_factory=dict)
    jobs: tuple[str, ...] = ()

    @property
    def n(self) -> int:
        """The number of runs."""
        return len(self.seeds)


@dataclass(frozen=True)
class SweepSummary:
    """All runs of a sweep, by experiment, in the order of their jobs."""

    folder: Path
    runs: tuple[Run, ...]
    groups: tuple[Group, ...]
    failures: tuple[Failure, ...]

    @property
    def varying(self) -> tuple[str, ...]:
        """The settings that tell the groups apart; attack and defense always count.

        An argument that every `fst` has in common does not, though an `ft` has none.
        """
        names = dict.fromkeys(name for group in self.groups for name in group.settings)
        return tuple(name for name in names if name in ("attack", "defense") or self._varies(name))

    @property
    def shared(self) -> dict[str, list[tuple[str, Setting]]]:
        """The other settings: under "" what all groups share, under `defense=fst` its own."""
        shared: dict[str, list[tuple[str, Setting]]] = {}
        varying = self.varying
        for group in self.groups:
            for name, value in group.settings.items():
                owner = name.partition(".")[0]
                common = all(other.settings.get(name) == value for other in self.groups)
                where = "" if common else f"{owner}={group.settings.get(owner)}"
                item = (name if common else name.partition(".")[2], value)
                if name not in varying and item not in shared.setdefault(where, []):
                    shared[where].append(item)
        return {where: items for where, items in shared.items() if items}

    def _varies(self, name: str) -> bool:
        owner, _, argument = name.partition(".")
        owned = argument and all(owner in group.settings for group in self.groups)
        seen: dict[str, set[str]] = {}
        for group in self.groups:
            of = str(group.settings[owner]) if owned else ""
            seen.setdefault(of, set()).add(str(group.settings.get(name)))
        return any(len(values) > 1 for values in seen.values())


def summarize_sweep(folder: str | os.PathLike[str]) -> SweepSummary:
    """Read every run below a folder; what is broken or missing is listed as failed.

    A run is a folder with a `results.json`, a `failure.json` (`{"error": text, "overrides":
    [text], "log": path}`), both (figures, then a failure: both count), or neither but a `.hydra`
    folder, which a killed run leaves behind.

    Args:
        folder: the sweep's folder; runs may be any number of levels below it.

    Raises:
        NotADirectoryError: If there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise NotADirectoryError(
            f"Expected `folder` to be the folder of a sweep, but {folder} is none."
        )
    runs: list[Run] = []
    failures: list[Failure] = []
    for path in _job_folders(folder):
        job = path.relative_to(folder).as_posix()
        results_file, failure_file = path / "results.json", path / "failure.json"
        if results_file.exists():
            results, error = read_results(results_file)
            if results is not None:
                runs.append(_run(job, results))
            else:
                failures.append(Failure(job, f"results.json {error}"))
        if failure_file.exists():
            failures.append(_failure(job, failure_file))
        elif not results_file.exists():
            failures.append(Failure(job, "left no results: killed, or still running"))
    return SweepSummary(folder, tuple(runs), _groups(runs), tuple(failures))


def _job_folders(folder: Path) -> list[Path]:
    marks = ("results.json", "failure.json", ".hydra")
    found = {path.parent for mark in marks for path in folder.rglob(mark)} - {folder}
    return sorted(found, key=lambda path: _by_number(path.relative_to(folder).as_posix()))


def _by_number(name: str) -> list[tuple[int, int, str]]:
    """Order job 10 after job 9."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def _run(job: str, results: Mapping[str, Any]) -> Run:
    known = {**results, "change": _change(results), "recovered": _recovered(results)}
    values = {name: _value(known, name) for name in VALUES}
    implanted = results["attack"]["implanted"]
    missed = tuple(each["what"] for each in shortfalls(results))
    return Run(job, results["seed"], settings_of(results), values, implanted, missed)


def _value(results: Mapping[str, Any], name: str) -> float | None:
    found: Any = results
    for key in name.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, int | float) else None


def _change(results: Mapping[str, Any]) -> dict[str, float]:
    before, after = results["before"]["ca"], (results["after"] or {}).get("ca")
    return {} if before is None or after is None else {"ca": after - before}


def _recovered(results: Mapping[str, Any]) -> Mapping[str, float | None]:
    """How often a recovered trigger works on test images, in the network before and after.

    It is that of the strongest detector that recovers one.
    """
    scan = (results.get("detection") or {}).get("before") or {}
    trigger = (recovered_trigger(scan) or {}).get("trigger") or {}
    return {"before": trigger.get("success"), "after": trigger.get("success_after")}


def _failure(job: str, file: Path) -> Failure:
    try:
        content = read_json(file)
    except (OSError, ValueError) as error:
        return Failure(job, f"failed; failure.json cannot be read: {error}")
    if not isinstance(content, dict):
        return Failure(job, "failed; failure.json does not say why")
    overrides = content.get("overrides")
    log = content.get("log")
    return Failure(
        job,
        str(content.get("error") or "failed; failure.json does not say why"),
        tuple(map(str, overrides)) if isinstance(overrides, list) else (),
        log if isinstance(log, str) else None,
    )


def _groups(runs: Sequence[Run]) -> tuple[Group, ...]:
    by_settings: dict[str, list[Run]] = {}
    for run in runs:
        key = json.dumps(dict(run.settings), sort_keys=True)
        by_settings.setdefault(key, []).append(run)
    return tuple(
        Group(
            settings=members[0].settings,
            seeds=tuple(run.seed for run in members),
            not_implanted=sum(run.implanted is False for run in members),
            values={name: Spread.of([run.values[name] for run in members]) for name in VALUES},
            shortfalls=Counter(what for run in members for what in run.shortfalls),
            jobs=tuple(run.job for run in members),
        )
        for members in by_settings.values()
    )
