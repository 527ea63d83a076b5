"""How well detectors tell backdoored networks from clean ones: figures and tables of a study.

    python -m benchmarks.detection_table results/detection/digits.jsonl

The tables are of the half for the report. Clean networks of the half for development are the
references of the conformal p-values, so that no threshold is chosen on what is reported.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from benchmarks.detection import IMPLANTED, read
from fst_lightning.detectors import ALARM, Evidence, Scan, Verdict, combined
from fst_lightning.metrics import wilson_interval

Network = Mapping[str, Any]
Judged = tuple[Network, Verdict, float]
"""A network, the verdict on it, and the seconds of the scan."""

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
    """The tables of a study, in Markdown."""
    networks = counted(read(records).values())
    report = [net for net in networks if net["half"] == "report"]
    references = [net for net in networks if net["half"] == "development" and _clean(net)]
    names = list(dict.fromkeys(name for net in networks for name in net["detectors"]))
    rows: dict[str, tuple[str, ...]] = {name: (name,) for name in names}
    rows |= {title: some for title, some in COMBINATIONS.items() if set(some) <= set(names)}
    parts = (_overall(rows, report, references), _by_attack(rows, networks), _provenance(networks))
    return "\n\n".join(parts) + "\n"


def _clean(network: Network) -> bool:
    return bool(network["label"] == "none")


def _overall(
    rows: Mapping[str, tuple[str, ...]],
    report: Sequence[Network],
    references: Sequence[Network],
) -> str:
    """AUC, detections and false alarms of every detector and combination."""
    lines = [
        "| detectors | clean + backdoored | AUC (95 %) | found, own p | false alarms, own p "
        "| found, ranked | false alarms, ranked | right class | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for title, names in rows.items():
        own, ranked = verdicts(report, names), verdicts(report, names, references)
        compared = [net for net in references if set(names) <= set(net["detectors"])]
        level = max(ALARM, 1 / (len(compared) + 1))
        clean, bad = (_scores(own, names, is_clean) for is_clean in (True, False))
        if not (clean and bad and compared):
            continue
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
            *(_share(ranked, level, is_clean) for is_clean in (False, True)),
            f"{sum(right)} of {len(right)}",
            f"{statistics.median(seconds for _, _, seconds in own):.1f}",
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


def _by_attack(rows: Mapping[str, tuple[str, ...]], networks: Sequence[Network]) -> str:
    """Alarms of the detectors' own p-values by attack, of both halves."""
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


def _provenance(networks: Sequence[Network]) -> str:
    def distinct(key: str) -> str:
        return ", ".join(sorted({str(net[key])[:40] for net in networks}))

    commits = ", ".join(f"`{commit[:12]}`" for commit in sorted({n["commit"] for n in networks}))
    return f"Commits {commits}; {distinct('hardware')}; {distinct('date')}."


def main() -> None:
    """Print the tables of the studies that are named."""
    for name in sys.argv[1:]:
        print(table(Path(name)))


if __name__ == "__main__":
    main()
