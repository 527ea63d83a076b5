"""The content of results.json, from plain values."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fst_lightning.reports.results.schema import SCHEMA_VERSION, validate

RATES = ("ca", "asr", "ra")
IMPLANTED_FROM = 0.5


@dataclass(frozen=True)
class Score:
    """The rates of one network, and the counts they come from.

    Args:
        ca: clean accuracy in [0, 1]; None where nothing was counted.
        asr: attack success rate in [0, 1]; None without an attack.
        ra: robust accuracy in [0, 1]; None without an attack.
        counts: (right rows, all rows) by rate; a rate without counts gets no interval. `control`
            counts the clean images that get the attacker's label without a trigger.

    Raises:
        ValueError: If a rate is outside [0, 1], or is not what its counts say.
    """

    ca: float | None
    asr: float | None = None
    ra: float | None = None
    counts: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in RATES:
            rate = self.rate(name)
            if rate is not None and not 0.0 <= rate <= 1.0:
                raise ValueError(f"Expected `{name}` to be in [0, 1], but got {rate}.")
            right, rows = self.counts.get(name, (0, 0))
            if rows and (rate is None or abs(rate - right / rows) > 1e-4):
                raise ValueError(f"Expected `{name}` to be {right} of {rows} rows, but got {rate}.")

    @classmethod
    def from_counts(cls, counts: Mapping[str, tuple[int, int]]) -> "Score":
        """Divide counts, as `BackdoorMetrics.counts()` gives them.

        Example:
            >>> Score.from_counts({"ca": (9, 10), "asr": (0, 0)}).ca
            0.9
        """
        rates = {name: right / rows if rows else None for name, (right, rows) in counts.items()}
        return cls(rates.get("ca"), rates.get("asr"), rates.get("ra"), dict(counts))

    def rate(self, name: str) -> float | None:
        """Return `ca`, `asr` or `ra` as a finite number, or None."""
        rate: float | None = getattr(self, name)
        return None if rate is None or math.isnan(rate) else float(rate)

    @property
    def control_rate(self) -> float | None:
        """The share of clean images of other classes that get the attacker's label anyway."""
        right, rows = self.counts.get("control", (0, 0))
        return right / rows if rows else None


def build_results(
    *,
    task: Literal["train", "purify", "detect"],
    seed: int,
    attack: Mapping[str, object],
    data: Mapping[str, object],
    model: Mapping[str, object],
    before: Score,
    training: Mapping[str, object] | None = None,
    tuning: Mapping[str, object] | None = None,
    after: Score | None = None,
    answers: tuple[int, int, int] | None = None,
    defense: Mapping[str, object] | None = None,
    shift: Mapping[str, float | None] | None = None,
    seconds: Mapping[str, float | None] | None = None,
    peak_memory_mb: Mapping[str, float | None] | None = None,
    environment: Mapping[str, object] | None = None,
    checkpoints: Mapping[str, str | os.PathLike[str] | None] | None = None,
    overrides: Sequence[str] = (),
    exported: Mapping[str, object] | None = None,
    robustness: Mapping[str, object] | None = None,
    detection: Mapping[str, object] | None = None,
) -> dict[str, Any]:
    """Put a run's results together, as results.json holds them.

    Works out `der`, `ci95`, `attack.control_rate` and `attack.implanted`: see `implanted`. If the
    attack did not take, `der` is null, for there was little to defend against. Keys that are
    promised but not given are null; further keys are kept.

    Args:
        task: "train" or "detect" (figures in `before`, no `after`), or "purify".
        seed: the run's seed, at least 0.
        attack: `name`, and `poison_ratio` in [0, 1], `target_label` and more where they apply.
        data: `name`, `num_classes` and the numbers of rows: `num_train`, `num_poisoned`,
            `num_clean_tuning`, `num_test`, `num_triggered_test`.
        model: `name`, `head`, `num_parameters`.
        before: the backdoored network's score.
        training: the recipe of the backdoored network; None if somebody else trained it.
        tuning: the recipe of the defense; None if it takes no training steps.
        after: the purified network's score.
        answers: clean test images that only the backdoored network gets right, that only the
            purified one gets right, and all: for the interval of the change.
        defense: `name` and its arguments, numbers as they were used. `auto` may list the
            arguments that the run chose itself; they then do not tell runs of a sweep apart.
        shift: how far the network moved: `head_cosine` and `feature_cosine` to the backdoored one.
        seconds: `train`, `purify`, `evaluate`.
        peak_memory_mb: of the same stages, MiB.
        environment: `precision`, `device`, `versions`, `commit`, `dirty`.
        checkpoints: the files `backdoored` and `purified`.
        overrides: what the command line changed, as `key=value`.
        robustness: what the checks of the purified network found, by name.
        detection: what the scans before and after a purification found.
        exported: by format, where the purified network was written to, or why not.

    Returns:
        Plain, validated values for `write_json`. Numbers that are not finite become None.

    Raises:
        ValueError: If a value breaks the schema.
        TypeError: If a value is nothing that JSON can hold.
    """
    blank = dict.fromkeys
    took = implanted(before)
    rows = ("num_train", "num_poisoned", "num_clean_tuning", "num_test", "num_triggered_test")
    content = {
        "schema_version": SCHEMA_VERSION,
        "task": task,
        "seed": seed,
        "attack": blank(("name", "poison_ratio", "target_label"))
        | dict(attack)
        | {"control_rate": before.control_rate, "implanted": took},
        "defense": defense,
        "data": blank(("name", "num_classes", *rows)) | dict(data),
        "model": blank(("name", "head", "num_parameters")) | dict(model),
        "training": training,
        "tuning": tuning,
        "before": {name: before.rate(name) for name in RATES},
        "after": after and {name: after.rate(name) for name in RATES},
        "der": _rating(before, after) if took else None,
        "ci95": {"before": _intervals(before), "after": after and _intervals(after)}
        | ({"change": {"ca": _change(*answers)}} if after and answers and answers[2] else {}),
        "seconds": blank(("train", "purify", "evaluate")) | dict(seconds or {}),
        "environment": {"precision": None, "device": None, "versions": {}}
        | blank(("commit", "dirty"))
        | dict(environment or {}),
        "checkpoints": blank(("backdoored", "purified")) | dict(checkpoints or {}),
        "overrides": list(overrides),
    }
    more = {
        "peak_memory_mb": peak_memory_mb,
        "exported": exported,
        "robustness": robustness,
        "detection": detection,
        "shift": shift,
    }
    content |= {name: value for name, value in more.items() if value}
    results: dict[str, Any] = plain(content)
    validate(results)
    return results


def implanted(before: Score) -> bool | None:
    """Say whether a network has the backdoor: whether the attack took.

    It has not if the ASR is under 0.5; if the ASR is not shown to be above the control rate (one
    sided, 95 %); or if the trigger turns less than half of the images that the network does not
    give the attacker's label anyway: a network that leans to the target needs little more for a
    high ASR. Without a control the ASR alone decides.

    Args:
        before: the backdoored network's score.

    Returns:
        None without an attack.

    Example:
        >>> counts = {"ca": (500, 1000), "asr": (610, 1000), "control": (500, 1000)}
        >>> implanted(Score.from_counts(counts))  # half of all clean images get the target anyway
        False
        >>> implanted(Score.from_counts({**counts, "control": (20, 1000)}))
        True
    """
    from fst_lightning.metrics import rate_difference_interval  # brings torch

    asr, control = before.rate("asr"), before.control_rate
    if asr is None or asr < IMPLANTED_FROM:
        return None if asr is None else False
    if control is None or not before.counts.get("asr", (0, 0))[1]:
        return True
    # The lower end of the two-sided 90 % interval is a one-sided 95 % bound.
    low, _ = rate_difference_interval(before.counts["asr"], before.counts["control"], 0.9)
    return low > 0 and asr - control >= IMPLANTED_FROM * (1 - control)


def network_files(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The networks that a run read and wrote: what each is, and its file."""
    names = {"backdoored": "backdoored network", "purified": "purified network"}
    if results["attack"]["name"] == "none":  # nobody knows that
        trained = results["task"] == "train"
        names["backdoored"] = "trained network" if trained else "incoming network"
    if (results["defense"] or {}).get("name") == "none":
        names["purified"] = "the same network"
    files = results["checkpoints"]
    known = [(names.get(kind, kind), path) for kind, path in files.items() if path]
    others = (results.get("exported") or {}).items()
    return known + [(f"as {name}", each["file"]) for name, each in others if "file" in each]


def plain(value: Any, where: str = "results") -> Any:
    """Copy a value into what JSON can hold.

    Mappings, sequences, paths and single-number arrays or tensors are converted; NaN and
    infinities become None.

    Args:
        value: what to copy.
        where: its name, for the error.

    Raises:
        TypeError: If a part of it has no JSON form.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return plain(value.item(), where)
    raise TypeError(
        f"Expected `{where}` to be a plain value (text, number, list, mapping or None), "
        f"but got {type(value).__name__}. Convert it first."
    )


def _rating(before: Score, after: Score | None) -> float | None:
    # Here, not at the top: reading and tabulating results needs no torch, which this brings in.
    from fst_lightning.metrics import defense_effectiveness_rating

    if after is None:
        return None
    rates = [score.rate(name) for score in (before, after) for name in ("ca", "asr")]
    known = [rate for rate in rates if rate is not None]
    return defense_effectiveness_rating(*known) if len(known) == len(rates) else None


def _change(lost: int, gained: int, total: int) -> list[float]:
    """The interval of the change in clean accuracy, after minus before, in [-1, 1]."""
    from fst_lightning.metrics import paired_drop_interval  # brings torch, as above

    low, high = paired_drop_interval(lost, gained, total)
    return [-high, -low]


def _intervals(score: Score) -> dict[str, list[float] | None]:
    from fst_lightning.metrics import wilson_interval  # brings torch, as above

    counts = {name: score.counts.get(name, (0, 0)) for name in RATES}
    return {
        name: list(wilson_interval(right, rows)) if rows else None
        for name, (right, rows) in counts.items()
    }
