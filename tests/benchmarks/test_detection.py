"""The study of the detectors: its order, its passes and its tables."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from benchmarks import detection
from benchmarks.detection import cases, read, run_detect, scan
from benchmarks.detection_table import auc, auc_interval, counted, rendered, table
from tests.runs import tiny


def test_every_beginning_is_balanced() -> None:
    for length in (4, 20, 48):
        some = list(islice(cases(), length))
        clean = [case for case in some if case.label == "none"]
        assert len(clean) == length / 2
        assert sum(case.half == "report" for case in clean) == length / 4
        assert len({case.name for case in some}) == length
    halves = {case.label: case.half for case in islice(cases(), 48) if case.label != "none"}
    assert len(halves) == 8
    assert all((case.seed % 2 == 1) == (case.half == "report") for case in islice(cases(), 48))


def test_a_study_goes_on_and_takes_further_detectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, tuple[str, ...]]] = []

    def record(case: Any, folder: Path, store: Path, detectors: Any) -> dict[str, Any]:
        asked.append((case.name, tuple(detectors)))
        found = {name: {"score": 1.0} for name in detectors}
        return {"name": case.name, "commit": f"c{len(asked)}", "detectors": found}

    monkeypatch.setattr(detection, "record", record)
    records = tmp_path / "study.jsonl"
    scan(records, tmp_path, tmp_path, 2, ["mm_bd"])
    scan(records, tmp_path, tmp_path, 3, ["mm_bd", "nc"])
    assert [names for _, names in asked] == [
        ("mm_bd",),
        ("mm_bd",),
        ("nc",),
        ("nc",),
        ("mm_bd", "nc"),
    ]
    assert [sorted(each["detectors"]) for each in read(records).values()] == [["mm_bd", "nc"]] * 3
    assert [each["commits"] for each in read(records).values()] == [
        ["c1", "c3"],
        ["c2", "c4"],
        ["c5"],
    ]


def test_a_network_is_scanned_as_the_command_does(tmp_path: Path) -> None:
    more = ["detector=[head_weights]", "data.num_classes=4", f"paths.store={tmp_path}"]
    results = run_detect([*tiny("detect", more), *more], tmp_path / "run")
    assert len(results["detection"]["before"]["detectors"]["head_weights"]["statistics"]) == 4


def test_auc_counts_pairs() -> None:
    clean, backdoored = [0.1, 0.5, 0.5, 0.9], [0.5, 1.0, 0.0]
    pairs = [(c, b) for c in clean for b in backdoored]
    wins = sum(1.0 if b > c else 0.5 if b == c else 0.0 for c, b in pairs)
    assert auc(clean, backdoored) == pytest.approx(wins / len(pairs))
    low, high = auc_interval(clean, backdoored)
    assert 0 <= low <= auc(clean, backdoored) <= high <= 1
    assert auc_interval([0.0] * 5, [1.0] * 5) == (1.0, 1.0)


def network(name: str, half: str, label: str, p_value: float, suspected: int) -> dict[str, Any]:
    found = {
        "p_value": p_value,
        "score": 1 - p_value,
        "suspected_class": suspected,
        "statistics": [0.0, 1.0, 0.0, 0.0],
        "seconds": 2.0,
    }
    clean = label == "none"
    return {
        "name": name,
        "half": half,
        "label": label,
        "target_label": None if clean else 0,
        "before": {"asr": None if clean else 0.95},
        "commit": "abc",
        "date": "2026-11-29",
        "hardware": "one thread",
        "detectors": {"mm_bd": found},
    }


def test_the_table_is_counted_by_hand(tmp_path: Path) -> None:
    development = [network(f"d{i}", "development", "none", 0.2 + i / 50, 1) for i in range(25)]
    report = [
        network("c1", "report", "none", 0.03, 2),  # a false alarm
        network("c2", "report", "none", 0.5, 2),
        network("b1", "report", "ssba", 0.001, 0),
        network("b2", "report", "ssba", 0.04, 3),  # found, another class
        network("b3", "report", "sig", 0.3, 0),  # missed
    ]
    weak = network("b4", "report", "sig", 0.9, 0)
    weak["before"]["asr"] = 0.79
    path = tmp_path / "study.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in [*development, *report, weak]))
    assert len(counted(read(path).values())) == 30
    row = next(line for line in table(path).splitlines() if line.startswith("| `mm_bd` |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == "2 + 3"
    assert cells[2].startswith(f"{4 / 6:.2f} (")
    assert [cell.split(" (")[0] for cell in cells[3:7]] == ["2 of 3", "1 of 2", "2 of 3", "1 of 2"]
    assert cells[7:] == ["1 of 2", "2.0"]
    by_attack = next(line for line in table(path).splitlines() if line.startswith("| `ssba`"))
    assert "2 of 2" in by_attack


def test_a_page_names_its_table(tmp_path: Path) -> None:
    some = [network("c1", "report", "none", 0.00001, 2), network("b1", "report", "ssba", 0.25, 0)]
    some[1] |= {"poison_ratio": 0.05}
    (tmp_path / "study.jsonl").write_text("".join(json.dumps(each) + "\n" for each in some))
    lines = rendered("study.jsonl | networks", tmp_path).splitlines()
    assert lines[2:4] == [
        "| no backdoor | - | - | < 0.0001 | 2 | 2 |",
        "| `ssba` 5 % | 0 | 95.00 | 0.2500 | 0 | 2 |",
    ]
    assert lines[-1] == "Commits `abc`; one thread; 2026-11-29."
    with pytest.raises(ValueError, match="Expected a table to be one of"):
        rendered("study.jsonl | all", tmp_path)
