"""What a scan found, in words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fst_lightning.reports.numbers import rate_text

_PATTERN = re.compile(r"\s*p\s*<\s*(0?\.\d+|1(?:\.0*)?)\s*")


@dataclass(frozen=True)
class Threshold:
    """The p-value below which a command is to fail.

    Attributes:
        p_value: In (0, 1].
    """

    p_value: float

    @classmethod
    def parse(cls, text: object) -> Threshold | None:
        """Read ``p<0.05``; None for None.

        Raises:
            ValueError: If the text says something else.

        Example:
            >>> Threshold.parse("p<0.05")
            Threshold(p_value=0.05)
        """
        if text is None:
            return None
        found = _PATTERN.fullmatch(str(text))
        if found is None or float(found[1]) == 0:
            raise ValueError(f"Expected `fail_on` to be null or 'p<NUMBER', but got {text!r}.")
        return cls(float(found[1]))

    def crossed(self, results: Mapping[str, Any]) -> bool:
        """Whether the network of these results is to be refused."""
        detection = results.get("detection") or {}
        last = detection.get("after") or detection.get("before") or {}
        p_value = last.get("p_value")
        return p_value is not None and last["verdict"] != "cannot_tell" and p_value < self.p_value


def detection_lines(results: Mapping[str, Any]) -> Iterator[str]:
    """The verdict of each scan, and what each detector said, a line each."""
    title = "verdict" if results["task"] == "detect" else "scan"
    for when, scan in (results.get("detection") or {}).items():
        if scan is None:
            continue
        where = "" if results["task"] == "detect" else f"{when}: "
        yield f"{title:<8} {where}{sentence(scan)}"
        for name, each in scan["detectors"].items():
            p_value = (
                "no p-value without references"
                if each["p_value"] is None
                else p_text(each["p_value"])
            )
            yield (
                f"         {name}: {p_value}, largest for class {each['suspected_class']}, "
                f"{each['seconds']:.1f} s"
            )
            if each.get("trigger"):
                yield f"         {trigger_sentence(each)}"


def recovered_trigger(scan: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The detector that recovered a trigger: the one with the strongest sign, if it did.

    Args:
        scan: The block ``detection.before`` of a results.json.

    Returns:
        Its block; None if no detector recovered one.
    """
    detectors = scan.get("detectors", {})
    every = [detectors.get(scan.get("strongest")), *detectors.values()]
    return next((each for each in every if each and each.get("trigger")), None)


def trigger_sentence(detector: Mapping[str, Any]) -> str:
    """How often the recovered trigger of a detector works, before and after a purification.

    Args:
        detector: Its block in a results.json, with a ``trigger``.
    """
    trigger = detector["trigger"]
    text = (
        f"The recovered trigger sends {_rate(trigger, '')} of {trigger['images']:,} test images "
        f"of other classes to class {detector['suspected_class']}"
    )
    if trigger["success_after"] is None:
        return f"{text}."
    return f"{text}; in the purified network, {_rate(trigger, '_after')}."


def _rate(trigger: Mapping[str, Any], when: str) -> str:
    """A share with its interval, and what the network does without the trigger."""
    low, high = (rate_text(end) for end in trigger[f"ci95{when}"])
    return (
        f"{rate_text(trigger[f'success{when}'])} % ({low} to {high}; without it "
        f"{rate_text(trigger[f'control{when}'])})"
    )


def sentence(scan: Mapping[str, Any]) -> str:
    """The verdict of a scan in one sentence. It never calls a network clean.

    Args:
        scan: The block ``detection.before`` or ``detection.after`` of a results.json.
    """
    if scan["verdict"] == "cannot_tell":
        return f"cannot tell, because {scan['reason']}"
    source = (
        f"ranked among {scan['num_references']} clean networks"
        if scan["calibration"] == "reference"
        else "by the detectors' own null distributions"
    )
    if scan["verdict"] == "backdoored":
        return (
            f"backdoor found (class {scan['suspected_class']}), {p_text(scan['p_value'])}, "
            f"{source}; the strongest sign is that of {scan['strongest']}"
        )
    return f"no sign of a backdoor, {p_text(scan['p_value'])}, {source}"


def p_text(value: float) -> str:
    """A p-value as text.

    Example:
        >>> p_text(0.00004), p_text(0.0321)
        ('p < 0.0001', 'p = 0.0321')
    """
    return f"p = {value:.4f}" if value >= 1e-4 else "p < 0.0001"
