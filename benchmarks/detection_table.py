"""How well detectors tell backdoored networks from clean ones: figures and tables of a study.

    python -m benchmarks.detection_table results/detection/digits.jsonl

``make tables`` renders them into the pages that name a study and a table::

    <!-- table: detection/digits.jsonl | overall -->

``overall`` and ``attacks`` compare detectors, ``networks`` has one row per network. ``overall`` is
of the half for the report. Clean networks of the half for development are the references of the
conformal p-values, so that no threshold is chosen on what is reported.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike

from benchmarks.detection import IMPLANTED, read
from fst_lightning.detectors import (
    ALARM,
    FEWEST_REFERENCES,
    Evidence,
    Scan,
    Verdict,
    combined,
)
from fst_lightning.metrics import wilson_interval

Network = Mapping[str, Any]
Judged = tuple[Network, Verdict, float]
"""A network, the verdict on it, and the seconds of the scan."""
Part = Literal["overall", "attacks", "networks"]
"""The tables of a study."""

COMBINATIONS: dict[str, tuple[str, ...]] = {
    "mm_bd + nc": ("mm_bd", "nc"),
    "mm_bd + universal + noise_response": ("mm_bd", "universal", "noise_response"),
    "head_weights + mm_bd + universal + noise_response": (
        "head_weights",
        "mm_bd",
        "universal",
        "noise_response",
    ),
    "all but bti_dbf": ("head_weights", "mm_bd", "universal", "noise_response", "nc"),
}
"""Combinations that the tables compare with the single detectors."""

_RESAMPLES = 2000


def auc(clean: ArrayLike, backdoored: ArrayLike) -> float:
    """The probability that a backdoored network scores above a clean one; ties count half.

    Example:
        >>> auc([1.0, 2.0], [2.0, 3.0])
        0.875
    """
    low, high = np.asarray(clean)[:, None], np.asarray(backdoored)[None]
    return float(((high > low) + 0.5 * (high == low)).mean())


def auc_interval(
    clean: Sequence[float], backdoored: Sequence[float], seed: int = 0
) -> tuple[float, float]:
    """A 95 % bootstrap interval of :func:`auc`: clean and backdoored networks are drawn apart."""
    draw = np.random.default_rng(seed)
    low, high = np.asarray(clean), np.asarray(backdoored)
    found = [
        auc(draw.choice(low, len(low)), draw.choice(high, len(high))) for _ in range(_RESAMPLES)
    ]
    return float(np.quantile(found, 0.025)), float(np.quantile(found, 0.975))


def counted(networks: Iterable[Network]) -> list[Network]:
    """Clean networks, and those whose backdoor works."""
    return [net for net in networks if net["label"] == "none" or net["before"]["asr"] >= IMPLANTED]


def scans_of(network: Network, names: Sequence[str]) -> dict[str, Scan] | None:
    """What the named detectors said of a network; None if one of them has not scanned it."""
    found = network["detectors"]
    if any(name not in found for name in names):
        return None
    return {
        name: Scan(
            Evidence(torch.tensor(found[name]["statistics"])),
            found[name]["score"],
            _own_p_value(found[name]),
            found[name]["suspected_class"],
        )
        for name in names
    }


def _own_p_value(found: Mapping[str, Any]) -> float | None:
    value: float | None = found["p_value"]
    return value


def verdicts(
    networks: Sequence[Network], names: Sequence[str], references: Sequence[Network] = ()
) -> list[Judged]:
    """The verdict on each network that all named detectors have scanned, and their seconds.

    Args:
        networks: Of the study.
        names: Of the detectors.
        references: Clean networks to rank among; none for the detectors' own null distributions.
    """
    scores = [
        {name: scan.score for name, scan in scans.items()}
        for scans in (scans_of(each, names) for each in references)
        if scans is not None
    ]
    found = []
    for network in networks:
        scans = scans_of(network, names)
        if scans is not None:
            seconds = sum(network["detectors"][name]["seconds"] for name in names)
            found.append((network, combined(scans, scores)[0], seconds))
    return found


def table(records: Path) -> str:
    """The tables of a study that compare detectors, in Markdown."""
    networks = list(read(records).values())
    parts = (_PARTS["overall"](networks), _PARTS["attacks"](networks), _provenance(networks))
    return "\n\n".join(parts) + "\n"


def rendered(spec: str, folder: Path) -> str:
    """The table that a page names, and its provenance.

    Args:
        spec: The study and the table, as in ``detection/digits.jsonl | overall``.
        folder: What the path of the study starts from.

    Raises:
        ValueError: If there is no such table.
    """
    name, _, part = (word.strip() for word in spec.partition("|"))
    if part not in get_args(Part):
        raise ValueError(f"Expected a table to be one of {get_args(Part)}, but got {part!r}.")
    networks = list(read(folder / name).values())
    return f"{_PARTS[part](networks)}\n\n{_provenance(networks)}\n"


def _clean(network: Network) -> bool:
    return bool(network["label"] == "none")


def _rows(networks: Sequence[Network]) -> dict[str, tuple[str, ...]]:
    """What is compared: each detector, and the combinations of those that were used."""
    names = list(dict.fromkeys(name for net in networks for name in net["detectors"]))
    rows: dict[str, tuple[str, ...]] = {name: (name,) for name in names}
    return rows | {title: some for title, some in COMBINATIONS.items() if set(some) <= set(names)}


def _overall(networks: Sequence[Network]) -> str:
    """AUC, detections and false alarms of every detector and combination."""
    networks = counted(networks)
    report = [net for net in networks if net["half"] == "report"]
    references = [net for net in networks if net["half"] == "development" and _clean(net)]
    lines = [
        "| detectors | clean + backdoored | AUC (95 %) | found, own p | false alarms, own p "
        "| found, ranked | false alarms, ranked | right class | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for title, names in _rows(networks).items():
        own, ranked = verdicts(report, names), verdicts(report, names, references)
        compared = [net for net in references if set(names) <= set(net["detectors"])]
        clean, bad = (_scores(own, names, is_clean) for is_clean in (True, False))
        if not (clean and bad):
            continue
        # With fewer references, no rank is a p-value of 5 %.
        enough = len(compared) >= FEWEST_REFERENCES
        low, high = auc_interval(clean, bad)
        with_target = [(n, v) for n, v, _ in own if n["target_label"] is not None and _one(n)]
        right = [
            v.suspected_class == net["target_label"] for net, v in with_target if _alarm(v, ALARM)
        ]
        cells = [
            f"`{title}`",
            f"{len(clean)} + {len(bad)}",
            f"{auc(clean, bad):.2f} ({low:.2f} to {high:.2f})",
            *(_share(own, ALARM, is_clean) for is_clean in (False, True)),
            *(_share(ranked, ALARM, is_clean) if enough else "-" for is_clean in (False, True)),
            f"{sum(right)} of {len(right)}",
            f"{min(seconds for _, _, seconds in own):.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _one(network: Network) -> bool:
    """Whether the backdoor has one target class."""
    return bool(network["label"] != "all_to_all")


def _alarm(found: Verdict, level: float) -> bool:
    return found.p_value is not None and found.p_value <= level


def _scores(found: Sequence[Judged], names: Sequence[str], is_clean: bool) -> list[float]:
    """What an AUC is made of: small p-values are high scores; without any, the detector's own."""
    return [
        float(net["detectors"][names[0]]["score"]) if v.p_value is None else -v.p_value
        for net, v, _ in found
        if _clean(net) == is_clean
    ]


def _share(found: Sequence[Judged], level: float, is_clean: bool) -> str:
    """Alarms among the clean or the backdoored networks, with Wilson's 95 % interval."""
    chosen = [v for net, v, _ in found if _clean(net) == is_clean]
    if any(v.p_value is None for v in chosen):
        return "-"
    hits = sum(_alarm(v, level) for v in chosen)
    low, high = wilson_interval(hits, len(chosen))
    return f"{hits} of {len(chosen)} ({100 * low:.0f} to {100 * high:.0f} %)"


def _by_attack(networks: Sequence[Network]) -> str:
    """Alarms of the detectors' own p-values by attack, of both halves."""
    networks = counted(networks)
    rows = _rows(networks)
    labels = list(dict.fromkeys(net["label"] for net in networks))
    lines = [f"| own p <= {ALARM:g} | {' | '.join(f'`{x}`' for x in rows)} |"]
    lines.append("|---|" + "---|" * len(rows))
    for label in labels:
        of_label = [net for net in networks if net["label"] == label]
        cells = []
        for names in rows.values():
            found = [v for _, v, _ in verdicts(of_label, names)]
            known = [v for v in found if v.p_value is not None]
            cells.append(
                f"{sum(_alarm(v, ALARM) for v in known)} of {len(known)}" if known else "-"
            )
        title = "no backdoor" if label == "none" else f"`{label}` ({of_label[0]['half']})"
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _each(networks: Sequence[Network]) -> str:
    """The p-value and the class of every detector, by network."""
    names = list(dict.fromkeys(name for net in networks for name in net["detectors"]))
    head = ["network", "target", "ASR, %", *(f"`{x}`{part}" for x in names for part in _SHOWN)]
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    for net in networks:
        asr, target = net["before"]["asr"], net["target_label"]
        cells = [
            "no backdoor" if _clean(net) else f"`{net['label']}` {100 * net['poison_ratio']:g} %",
            "-" if target is None else str(target),
            "-" if asr is None else f"{100 * asr:.2f}",
        ]
        for name in names:
            found = net["detectors"].get(name)
            if found is None:
                cells += ["-"] * len(_SHOWN)
                continue
            p_value = found["p_value"]
            cells += [
                "-" if p_value is None else f"{p_value:.4f}" if p_value >= 1e-4 else "< 0.0001",
                str(found["suspected_class"]),
                f"{found['seconds']:.0f}",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


_SHOWN = (": p", ": class", ": s")
_PARTS = {"overall": _overall, "attacks": _by_attack, "networks": _each}


def _provenance(networks: Sequence[Network]) -> str:
    def distinct(key: str) -> str:
        return ", ".join(sorted({str(net[key])[:40] for net in networks}))

    commits = sorted({commit[:12] for net in networks for commit in net["commits"]})
    named = ", ".join(f"`{commit}`" for commit in commits)
    return f"Commits {named}; {distinct('hardware')}; {distinct('date')}."


def main() -> None:
    """Print the tables of the studies that are named."""
    for name in sys.argv[1:]:
        print(table(Path(name)))


if __name__ == "__main__":
    main()
