"""What a run chose itself (``alpha=auto``, ``lr=auto``), and what that cost, in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fst_lightning.reports.numbers import minus, points_text, significant

_SEARCHES = {
    "lr_search": ("learning rate", "highest", "tuning.optimizer.lr=auto"),
    "alpha_search": ("alpha", "strongest", "defense.alpha=auto"),
}


def choices(results: Mapping[str, Any]) -> list[str]:
    """List what the run chose, one sentence or two each, and how that turned out on test images.

    Args:
        results: The content of a results.json.

    Returns:
        Nothing for a run that was given all numbers.
    """
    findings = (results["defense"] or {}).get("findings") or {}
    found = {name: findings[name] for name in _SEARCHES if findings.get(name)}
    sentences = [choice(name, search) for name, search in found.items()]
    if found and results["after"] is not None:
        budget = max(search["max_ca_drop"] for search in found.values())
        kept = all(search["within_budget"] for search in found.values())
        sentences += _on_test_images(results, budget, kept)
    return sentences


def choice(name: str, search: Mapping[str, Any]) -> str:
    r"""Say what a search chose, of how much, and at what cost.

    Args:
        name: "lr_search" or "alpha_search".
        search: That block of the findings.

    Example:
        >>> found = {"ca_drop": 0.0035, "ca_drop_bounds": [-0.005, 0.012], "total": 287}
        >>> text = choice("alpha_search", {"chosen": 0.464, "within_budget": True,
        ...     "max_ca_drop": 0.02, "tried": {"0.464": found}})
        >>> print(text[:57])
        The run chose alpha 0.464 (defense.alpha=auto), the stron
    """
    what, most, key = _SEARCHES[name]
    tried, chosen = search["tried"], f"{search['chosen']:.3g}"
    found = tried.get(chosen)
    allowed = _points(search["max_ca_drop"])
    text = f"The run chose {what} {chosen} ({key}), the {most} of {len(tried)} tried"
    if search["within_budget"]:
        text += f" that is not shown to cost more than {allowed} points of clean accuracy."
    else:
        text += (
            f". None of them kept to the budget of {allowed} points of clean accuracy: even "
            f"{search['compared_with']}, the least costly one, costs "
            f"{_points(search['compared_with_ca_drop'])}. What follows is on top of that."
        )
    if found is None:
        return text
    low, high = found["ca_drop_bounds"]
    return (
        f"{text} On {found['total']:,} clean images of the defender it costs "
        f"{_points(found['ca_drop'])} points (90 % interval {_points(low)} to {_points(high)})."
    )


def _on_test_images(results: Mapping[str, Any], budget: float, kept: bool) -> list[str]:
    before, after = results["before"]["ca"], results["after"]["ca"]
    if before is None or after is None:
        return []
    change = after - before
    ends = (results["ci95"].get("change") or {}).get("ca")
    count = results["data"]["num_test"]
    where = "the test images" if count is None else f"the {count:,} test images"
    text = f"On {where}, clean accuracy changed by {points_text(change)} points"
    if ends:
        text += f" (95 % interval {points_text(ends[0])} to {points_text(ends[1])})"
    allowed = f"the {_points(budget)} points that the search allowed"
    if not kept:
        return [f"{text}."]
    if change >= -budget:
        return [f"{text}: within {allowed}."]
    if ends and ends[1] >= -budget:
        return [f"{text}. That is more than {allowed}, but {where} do not resolve the difference."]
    return [
        f"{text}. That is more than {allowed}: the search judges by the defender's images, and by "
        "tunings of half the epochs, so it can miss."
    ]


def _points(drop: float) -> str:
    return minus(significant(round(100 * drop, 2) + 0.0))
