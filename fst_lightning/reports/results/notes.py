"""What a reader must know before believing the figures of a run."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fst_lightning.reports.numbers import percent, signed_points

CHANCE_MARGIN = 0.02
"""How far above guessing an accuracy without an interval counts as guessing."""

THERE_FROM = 0.5
"""The attack success rate from which a backdoor counts as there."""

RESOLVED = 0.02
"""The half width of the interval of a change in clean accuracy above which it may be a warning."""

ONE_POINT = 0.01


def notes(results: Mapping[str, Any]) -> list[str]:
    """List the warnings that belong to a run's figures, one sentence or two each.

    Args:
        results: the content of a results.json.

    Returns:
        Nothing for a healthy run. Otherwise that the attack did not take, that the defense did not
        do what it set out to do, that a clean accuracy is at chance, and the like.
    """
    found = []
    before, after = results["before"], results["after"]
    classes = results["data"]["num_classes"]
    if results["attack"]["implanted"] is False:
        found.append(
            f"The attack did not take: {_not_implanted(results)}; no defense is credited. "
            "See docs/figures.md#did-the-attack-take."
        )
    found += [f"{each['what']}. {each['why']}".rstrip() for each in shortfalls(results)]
    first, last = (_interval(results, when) for when in ("before", "after"))
    if at_chance(before["ca"], classes, first):
        found.append(
            f"{_guessing(before['ca'], classes)} "
            + (
                "The network has learned nothing: train longer, or with another learning rate."
                if results["task"] == "train"
                else "Check the order of the classes (data.classes), data.mean and data.std, "
                "data.image_size, and that the checkpoint belongs to this data. See "
                "docs/troubleshooting.md."
            )
        )
    elif after is not None and at_chance(after["ca"], classes, last):
        found.append(
            f"After the defense, {_guessing(after['ca'], classes)} The defense has destroyed "
            "the network: try a smaller learning rate, or a weaker penalty."
        )
    if unresolved := _unresolved(results):
        found.append(unresolved)
    for name, each in (results.get("exported") or {}).items():
        if "error" in each:
            found.append(f"The purified network was not written as {name}: {each['error']}")
    return found


def shortfalls(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """What the run set out to do and did not do; a run with any is no success.

    Args:
        results: the content of a results.json.

    Returns:
        By shortfall, ``what`` (a clause such as ``Nothing was pruned``) and ``why`` (a sentence).
    """
    findings = (results["defense"] or {}).get("findings") or {}
    found: list[dict[str, str]] = findings.get("shortfalls") or []
    return found


def at_chance(
    ca: float | None, num_classes: int | None, interval: Sequence[float] | None = None
) -> bool:
    """Say whether an accuracy may be no better than guessing: its interval reaches down to 1/C.

    Args:
        ca: clean accuracy in [0, 1], or None.
        num_classes: the number of classes C, or None if it is not known.
        interval: both ends of its confidence interval, in [0, 1]; None takes a margin of 0.02.

    Example:
        >>> at_chance(0.11, 10), at_chance(0.13, 10)
        (True, False)
        >>> at_chance(0.2, 10, (0.08, 0.42)), at_chance(0.11, 10, (0.104, 0.117))
        (True, False)
    """
    if ca is None or not num_classes:
        return False
    low = ca - CHANCE_MARGIN if interval is None else interval[0]
    return low <= 1.0 / num_classes


def _interval(results: Mapping[str, Any], when: str) -> Sequence[float] | None:
    found: Sequence[float] | None = (results["ci95"].get(when) or {}).get("ca")
    return found


def _not_implanted(results: Mapping[str, Any]) -> str:
    """Why the attack counts as failed."""
    asr, control = results["before"]["asr"], results["attack"].get("control_rate")
    if control is None or asr < THERE_FROM:
        return f"ASR {percent(asr)} % < 50 %"
    return (
        f"ASR {percent(asr)} %, but {percent(control)} % of the clean images of other classes get "
        "the attacker's label without the trigger"
    )


def _unresolved(results: Mapping[str, Any]) -> str | None:
    """A warning if the test images are too few to tell what the defense costs."""
    ends = (results["ci95"].get("change") or {}).get("ca")
    count = results["data"]["num_test"]
    if not ends or not count or (results["defense"] or {}).get("name") == "none":
        return None
    reach = (ends[1] - ends[0]) / 2
    change = results["after"]["ca"] - results["before"]["ca"]
    if reach <= max(RESOLVED, abs(change) / 4):
        return None
    needed = count * (reach / ONE_POINT) ** 2
    digits = -int(math.log10(needed)) + 1
    return (
        f"{count:,} test images do not resolve the change in clean accuracy: "
        f"{signed_points(change)} points, 95 % interval {signed_points(ends[0])} to "
        f"{signed_points(ends[1])}. About {round(needed, digits):,.0f} would resolve one point."
    )


def _guessing(ca: float, num_classes: int) -> str:
    return (
        f"CA {percent(ca)} % is at chance (guessing among {num_classes} classes gives "
        f"{percent(1.0 / num_classes)} %)."
    )
