"""One sentence that answers: is the backdoor gone, and what did it cost?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Literal

from fst_lightning.reports.numbers import rate_text, significant
from fst_lightning.reports.results.notes import THERE_FROM, at_chance, shortfalls

_NO_COST = "it cost no clean accuracy"

GONE_BELOW = 0.05
"""The attack success rate up to which a backdoor counts as gone."""

STRONG_BELOW = 0.25
"""The share of the median patch below which a suspicious one is more than a weak sign."""

Tone = Literal["good", "bad", ""]


@dataclass(frozen=True)
class Verdict:
    """What a person reads first.

    Attributes:
        headline: one sentence.
        tone: whether it is good news, bad news, or neither.
        lead: the figures behind it, in words.
        caution: what this does not show.
    """

    headline: str
    tone: Tone
    lead: str
    caution: str


def verdict(results: Mapping[str, Any]) -> Verdict:
    """Judge a run by its results.

    An ASR up to 5 % counts as gone, one of 50 % and more as still there; the line between "at
    little cost" and "but" is 5 points of clean accuracy. A run that did not do what it set out to
    do (``shortfalls``) is never good news: the headline opens with the shortfall.

    Args:
        results: the content of a results.json.
    """
    found = _judged(results)
    missed = [each["what"] for each in shortfalls(results)]
    if not missed or results["after"] is None:
        return found
    headline = " ".join([*(f"{what}." for what in missed), found.headline])
    return replace(found, headline=headline, tone="bad" if found.tone == "bad" else "")


def _judged(results: Mapping[str, Any]) -> Verdict:
    """The verdict on the figures alone."""
    before, after = results["before"], results["after"]
    classes = results["data"]["num_classes"]
    attacked = before["asr"] is not None
    if results["task"] == "train" or after is None:
        return _trained(results, attacked)
    cost = _cost(before["ca"], after["ca"])
    if shortfalls(results) and cost.startswith(_NO_COST):
        cost = "clean accuracy did not fall"
    ends = {when: (results["ci95"].get(when) or {}).get("ca") for when in ("before", "after")}
    guessed = at_chance(before["ca"], classes, ends["before"])
    if at_chance(after["ca"], classes, ends["after"]) and not guessed:
        lead = f"Clean accuracy fell from {_rate(before['ca'])} to {_rate(after['ca'])}: guessing."
        return Verdict("The defense destroyed the network.", "bad", lead, _OF_THE_TRIGGER)
    if not attacked:
        return _unknown(results, cost)
    lead = (
        f"Of the {_count(results)} test images that carry the trigger, the network took "
        f"{_rate(before['asr'])} for the attacker's label before, and takes {_rate(after['asr'])} "
        f"now; {_rate(after['ra'])} get their true class (before: {_rate(before['ra'])}). Clean "
        f"accuracy: {_rate(before['ca'])} before, {_rate(after['ca'])} after."
    )
    defense = _defense(results)
    if not results["attack"]["implanted"]:
        headline = "There was no backdoor to speak of: the attack did not take."
        return Verdict(headline, "bad", lead, _OF_THE_TRIGGER)
    if defense == "none":
        headline = "The backdoor is there; nothing was done about it (defense=none)."
        return Verdict(headline, "bad", lead, _OF_THE_TRIGGER)
    asr = after["asr"]
    dear = before["ca"] - after["ca"] > 0.05
    if asr <= GONE_BELOW:
        headline = f"The backdoor is gone{', but ' if dear else '; '}{cost}."
        return Verdict(headline, "bad" if dear else "good", lead, _OF_THE_TRIGGER)
    if asr < THERE_FROM:
        headline = f"The backdoor is weakened, not gone: {_rate(asr)} still succeed; {cost}."
    else:
        headline = f"The backdoor is still there: {_rate(asr)} succeed; {cost}."
    return Verdict(headline, "bad", lead, _OF_THE_TRIGGER)


def _unknown(results: Mapping[str, Any], cost: str) -> Verdict:
    """A network of which nobody has told the trigger."""
    before, after = results["before"]["ca"], results["after"]["ca"]
    touched = _defense(results) != "none"
    lead = f"Clean accuracy: {_rate(before)}"
    lead += f" before, {_rate(after)} after." if touched else "."
    search = results.get("inversion")
    if not search:
        done = f"The network was changed; {cost}" if touched else "The network was only measured"
        if shortfalls(results):
            done = f"{cost[0].upper()}{cost[1:]}"
        headline = f"{done}. Whether it has a backdoor is not known."
        lead += " No trigger was given, so no attack success rate could be measured."
        return Verdict(headline, "", lead, _UNKNOWN)
    first = search["before"]
    last = search.get("after", first)
    lead = f"{_found(first)} {lead}"
    if not touched:
        headline = f"{_sign(first)} was found; nothing was done (defense=none)."
        if not first["suspicious"]:
            headline = "A search found nothing that looks like a trigger."
        return Verdict(headline, "bad" if strong(first) else "", lead, _SEARCHED)
    if first["suspicious"] and last["suspicious"]:
        again = set(first["suspicious"]) & set(last["suspicious"])
        where = "is found after it, too" if again else "is followed by one in another class"
        headline = f"{_sign(first, 'looked')} before the defense {where}; {cost}."
        return Verdict(headline, "bad" if strong(last) else "", lead, _SEARCHED)
    if first["suspicious"]:
        headline = f"{_sign(first, 'looked')} is no longer found; {cost}."
        return Verdict(headline, "good" if strong(first) else "", lead, _SEARCHED)
    if last["suspicious"]:
        headline = f"{_sign(last)} is found only after the defense; {cost}."
        return Verdict(headline, "bad" if strong(last) else "", lead, _SEARCHED)
    headline = f"A search found nothing that looks like a trigger, before or after; {cost}."
    return Verdict(headline, "", lead, _SEARCHED)


def strong(search: Mapping[str, Any]) -> bool:
    """Whether a search for triggers found one that chance hardly gives.

    Args:
        search: ``inversion.before`` or ``.after`` of a results.json.
    """
    share = _share(search)
    return share is not None and share < STRONG_BELOW


def _sign(search: Mapping[str, Any], verb: str = "looks") -> str:
    return f"What {verb} like a trigger" if strong(search) else "A weak sign of a trigger"


def _share(search: Mapping[str, Any]) -> float | None:
    """The patch of the most suspicious class as a share of the median one."""
    usual = median(search["pixels"]) if search["suspicious"] else 0.0
    return float(search["pixels"][search["suspicious"][0]] / usual) if usual else None


def _found(search: Mapping[str, Any]) -> str:
    """The most suspicious class in words."""
    pixels = sorted(search["pixels"])
    usual = f"the median class needs {median(pixels):.1f}" if pixels else ""
    if not search["suspicious"]:
        return f"No class stands out: {usual} pixels, the least needs {pixels[0]:.1f}."
    label, name = search["suspicious"][0], search["names"][0]
    works = search.get("test_rate") or search["rate"]
    text = (
        f"A patch of {search['pixels'][label]:.1f} pixels turns {_rate(works[label])} of the test "
        f"images of other classes into class {name}; {usual} (anomaly index "
        f"{search['index'][label]:.1f}). "
    )
    text += (
        "So small a patch is hardly chance."
        if strong(search)
        else "Patches that much smaller than the usual are found in clean networks, too."
    )
    later = search.get("test_rate_after")
    if later:
        text += f" In the purified network the same patch turns {_rate(later[label])}."
    return text


def _defense(results: Mapping[str, Any]) -> str | None:
    return (results["defense"] or {}).get("name")


def _trained(results: Mapping[str, Any], attacked: bool) -> Verdict:
    before = results["before"]
    ca, asr = before["ca"], before["asr"]
    if not attacked:
        headline = f"A clean network was trained: {_rate(ca)} of the test images are right."
        return Verdict(headline, "", "", "")
    lead = (
        f"Of the {_count(results)} test images that carry the trigger, the network takes "
        f"{_rate(asr)} for the attacker's label. Of those without it, {_rate(ca)} are right: "
        "who looks at clean images alone sees nothing."
    )
    if results["attack"]["implanted"]:
        return Verdict(f"The backdoor is in: it opens {_rate(asr)} of the time.", "", lead, "")
    headline = f"The attack did not take: the trigger works {_rate(asr)} of the time."
    return Verdict(headline, "bad", lead, "")


def _cost(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return "clean accuracy was not measured"
    lost = round(100 * (before - after), 2)
    if lost > 0:
        return f"it cost {significant(lost)} points of clean accuracy"
    gained = f" ({significant(-lost)} points were won)" if lost < 0 else ""
    return f"{_NO_COST}{gained}"


def _rate(rate: float | None) -> str:
    return "an unknown share" if rate is None else f"{rate_text(rate)} %"


def _count(results: Mapping[str, Any]) -> str:
    number = results["data"]["num_triggered_test"]
    return "" if number is None else f"{number:,}"


_OF_THE_TRIGGER = (
    "Measured with the attacker's own trigger. It says nothing of other triggers, and not "
    "whether a short training on poisoned images would bring this one back: see docs/hidden.md."
)
_UNKNOWN = (
    "What this proves: how well the network sorts clean images, and how far its weights and "
    "features moved. What it does not prove: that there was a backdoor, or that there is none "
    "now. A defense changes a clean network as much as a backdoored one. To learn more, look for a "
    "trigger in the network itself (report.inversion=true); see docs/own_checkpoint.md."
)
_SEARCHED = (
    "What this proves: how well the network sorts clean images, and how small a patch moves them "
    "into each class. What it does not prove: that a class which stands out holds a backdoor (a "
    "mark that truly belongs to a class looks the same, and of ten classes of a clean network one "
    "passes the line by chance up to one time in three), nor that there is none where nothing "
    "stands out: triggers that cover the whole image, are spread thinly, or depend on the image "
    "are often missed. See docs/figures.md#looking-for-a-trigger."
)
