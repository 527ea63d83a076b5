"""What a reader must know before believing the figures of a run."""

from collections.abc import Mapping
from typing import Any

from fst_lightning.reports.layout import percent

CHANCE_MARGIN = 0.02


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
            f"The attack did not take: ASR {percent(before['asr'])} % < 50 %; "
            "no defense is credited."
        )
    found += [f"{each['what']}. {each['why']}".rstrip() for each in shortfalls(results)]
    if at_chance(before["ca"], classes):
        found.append(
            f"{_guessing(before['ca'], classes)} "
            + (
                "The network has learnt nothing: train longer, or with another learning rate."
                if results["task"] == "train"
                else "Check the order of the classes (data.classes), data.mean and data.std, "
                "data.image_size, and that the checkpoint belongs to this data."
            )
        )
    elif after is not None and at_chance(after["ca"], classes):
        found.append(
            f"After the defense, {_guessing(after['ca'], classes)} The defense has destroyed "
            "the network: try a smaller learning rate, or a weaker penalty."
        )
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


def at_chance(ca: float | None, num_classes: int | None) -> bool:
    """Say whether an accuracy is no better than guessing: at most 1/C + 0.02.

    Args:
        ca: clean accuracy in [0, 1], or None.
        num_classes: the number of classes C, or None where it is not known.

    Example:
        >>> at_chance(0.11, 10), at_chance(0.13, 10)
        (True, False)
    """
    return ca is not None and bool(num_classes) and ca <= 1.0 / (num_classes or 1) + CHANCE_MARGIN


def _guessing(ca: float, num_classes: int) -> str:
    return (
        f"CA {percent(ca)} % is at chance (guessing among {num_classes} classes gives "
        f"{percent(1.0 / num_classes)} %)."
    )
