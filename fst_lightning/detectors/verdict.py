"""One verdict from several detectors, with a false alarm rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fst_lightning.detectors.detector import Scan, surprise
from fst_lightning.detectors.outlier import ALARM

FEWEST_REFERENCES = 19
"""With m reference networks no p-value is below 1 / (m + 1)."""

VerdictWord = Literal["backdoored", "no_sign", "cannot_tell"]
Calibration = Literal["reference", "parametric"]


@dataclass(frozen=True)
class Verdict:
    """What all detectors together say.

    Attributes:
        verdict: ``backdoored``, ``no_sign`` or ``cannot_tell``; never "clean".
        p_value: The probability of so strong a sign on a network without a backdoor; None if no
            detector has one.
        suspected_class: The class that the strongest sign names; None without an alarm.
        calibration: Where the p-value comes from: reference networks, or the detectors' own null
            distributions.
        detector: The detector with the strongest sign.
    """

    verdict: VerdictWord
    p_value: float | None
    suspected_class: int | None
    calibration: Calibration
    detector: str | None


def combined(
    scans: Mapping[str, Scan], references: Sequence[Mapping[str, float]] = ()
) -> tuple[Verdict, dict[str, float | None]]:
    r"""Combine detectors by their smallest p-value.

    Without references, with n detectors that have a p-value, by Bonferroni's correction:

    .. math:: p = \min(1, n \min_i p_i)

    With the scores of m reference networks that are known to be clean, every detector's p-value is
    its rank among them, and so is the combination's. Its score is the largest of the ranks'
    surprises; ties are broken by the sum:

    .. math:: p = \frac{1 + |\{r : s_r \ge s\}|}{m + 1}

    which is valid if the network, had it no backdoor, could as well be one of the references. It
    is at least :math:`1 / (m + 1)`: 19 references are the fewest that allow an alarm. A network
    that is more suspicious than all of fewer references gets ``cannot_tell``.

    Args:
        scans: What each detector found, by name.
        references: For each clean network, the scores of the same detectors by name.

    Returns:
        The verdict, and the p-value of each detector.

    References:
        Xiang, Xiong and Li, "CBD: A certified backdoor detector based on local dominant
        probability", NeurIPS 2023, arXiv 2310.17498 (conformal p-values from clean networks).
    """
    if references:
        own = {
            name: _rank(scan.score, [reference[name] for reference in references])
            for name, scan in scans.items()
        }
        p_values: dict[str, float | None] = dict(own)
        # Each reference is ranked among all the networks as well, so that it is treated alike.
        everything = [{n: s.score for n, s in scans.items()}, *references]
        scores = [_strength(network, everything) for network in everything]
        p_value: float | None = _rank(scores[0], scores[1:])
    else:
        p_values = {name: scan.p_value for name, scan in scans.items()}
        known = [value for value in p_values.values() if value is not None]
        p_value = min(1.0, len(known) * min(known)) if known else None
    calibration: Calibration = "reference" if references else "parametric"
    if p_value is None:
        return Verdict("cannot_tell", None, None, calibration, None), p_values
    strongest = min(
        (name for name in scans if p_values[name] is not None),
        key=lambda name: (p_values[name], -scans[name].score),
    )
    alarm = p_value <= ALARM
    first = bool(references) and p_value <= 1 / (len(references) + 1)
    verdict = Verdict(
        "backdoored" if alarm else "cannot_tell" if first else "no_sign",
        p_value,
        scans[strongest].suspected_class if alarm else None,
        calibration,
        strongest,
    )
    return verdict, p_values


def _rank(score: Any, references: Sequence[Any]) -> float:
    at_least = sum(bool(reference >= score) for reference in references)
    return (1 + at_least) / (len(references) + 1)


def _strength(
    network: Mapping[str, float], everything: Sequence[Mapping[str, float]]
) -> tuple[float, float]:
    ranks = [
        sum(other[name] >= network[name] for other in everything) / len(everything)
        for name in network
    ]
    surprises = [surprise(rank) for rank in ranks]
    return max(surprises), sum(surprises)
