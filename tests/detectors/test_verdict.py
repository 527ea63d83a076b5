"""One verdict from several detectors: corrections, ranks and their guarantees."""

from __future__ import annotations

import random

import pytest
import torch

from fst_lightning.detectors import Evidence, Scan, combined


def scan(p_value: float | None, score: float = 0.0, suspected: int = 2) -> Scan:
    return Scan(Evidence(torch.zeros(5)), score, p_value, suspected)


def test_bonferroni() -> None:
    verdict, each = combined({"a": scan(0.01, suspected=4), "b": scan(0.4), "c": scan(0.9)})
    assert verdict.p_value == pytest.approx(0.03)
    assert (verdict.verdict, verdict.suspected_class) == ("backdoored", 4)
    assert (verdict.detector, verdict.calibration) == ("a", "parametric")
    assert each == {"a": 0.01, "b": 0.4, "c": 0.9}


def test_no_alarm_suspects_nobody() -> None:
    verdict, _ = combined({"a": scan(0.03), "b": scan(0.6)})
    assert (verdict.verdict, verdict.p_value, verdict.suspected_class) == ("no_sign", 0.06, None)
    assert combined({"a": scan(0.7), "b": scan(0.6)})[0].p_value == 1


def test_detectors_without_a_null_count_only_with_references() -> None:
    verdict, each = combined({"a": scan(None, 0.9), "b": scan(0.01)})
    assert verdict.p_value == 0.01
    assert each["a"] is None
    alone, _ = combined({"a": scan(None, 0.9)})
    assert (alone.verdict, alone.p_value) == ("cannot_tell", None)
    references = [{"a": i / 50, "b": 0.0} for i in range(19)]
    ranked, each = combined({"a": scan(None, 0.9), "b": scan(0.01, 0.0)}, references)
    assert each["a"] == 1 / 20
    assert (ranked.verdict, ranked.p_value, ranked.calibration) == ("backdoored", 0.05, "reference")


def test_the_rank_among_references() -> None:
    references = [{"a": float(i)} for i in range(9)]
    for score, expected in ((9.0, 0.1), (8.0, 0.2), (4.5, 0.5), (-1.0, 1.0)):
        assert combined({"a": scan(0.5, score)}, references)[0].p_value == expected


def test_too_few_references_for_an_alarm() -> None:
    references = [{"a": float(i)} for i in range(18)]
    first, _ = combined({"a": scan(0.5, 18.0)}, references)
    assert (first.verdict, first.p_value, first.suspected_class) == ("cannot_tell", 1 / 19, None)
    second, _ = combined({"a": scan(0.5, 16.5)}, references)
    assert (second.verdict, second.p_value) == ("no_sign", 2 / 19)
    enough, _ = combined({"a": scan(0.5, 19.0)}, [*references, {"a": 18.0}])
    assert enough.verdict == "backdoored"


def test_false_alarms_are_as_promised() -> None:
    """A network that is one of many equal ones has p <= 0.1 in at most a tenth of the cases."""
    numbers, alarms, trials = random.Random(0), 0, 2000
    for _ in range(trials):
        networks = [{name: numbers.gauss(0, 1) for name in "abc"} for _ in range(20)]
        scans = {name: scan(0.5, score) for name, score in networks[0].items()}
        p_value = combined(scans, networks[1:])[0].p_value
        assert p_value is not None
        alarms += p_value <= 0.1
    assert alarms / trials < 0.1 + 3 * (0.1 * 0.9 / trials) ** 0.5
