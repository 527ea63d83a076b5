import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fst_lightning.reports import (
    Failure,
    Score,
    Spread,
    summarize_sweep,
    write_json,
    write_sweep,
)
from fst_lightning.reports.results.sweep_text import sweep_notes
from tests.reports.example import example, score

DEFENSES = ({"name": "fst", "alpha": 0.2}, {"name": "ft"})


def put(folder: Path, job: str, **changes: object) -> None:
    write_json(folder / job / "results.json", example(**changes))


def sweep(folder: Path) -> None:
    """Two attacks, two defenses, three seeds; job 10 must come after job 9."""
    job = 0
    for attack in ("badnets", "blended"):
        for defense in DEFENSES:
            for seed in range(3):
                put(
                    folder,
                    str(job),
                    seed=seed,
                    attack={"name": attack, "poison_ratio": 0.05},
                    defense=defense,
                    after=score(900 + 7 * job, 3 * job, 800 - job * job),
                    overrides=[f"attack={attack}", f"defense={defense['name']}", f"seed={seed}"],
                )
                job += 1


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_spread_is_numpys(values: list[float]) -> None:
    spread = Spread.of([*values, None])
    assert spread.mean == pytest.approx(np.mean(values), abs=1e-12)
    assert spread.std == pytest.approx(np.std(values, ddof=1), abs=1e-12)
    assert spread.n == len(values)


def test_spread_of_one_and_of_none() -> None:
    assert Spread.of([0.25, None]) == Spread(0.25, None, 1)
    assert Spread.of([None]) == Spread(None, None, 0)


def test_groups_by_everything_but_the_seed(tmp_path: Path) -> None:
    sweep(tmp_path)
    summary = summarize_sweep(tmp_path)
    assert [run.job for run in summary.runs] == [str(job) for job in range(12)]
    assert summary.failures == ()
    assert summary.varying == ("attack", "defense")
    names = [(group.settings["attack"], group.settings["defense"]) for group in summary.groups]
    assert names == [
        ("badnets", "fst"),
        ("badnets", "ft"),
        ("blended", "fst"),
        ("blended", "ft"),
    ]
    for i, group in enumerate(summary.groups):
        jobs = np.arange(3 * i, 3 * i + 3)
        assert group.n == 3
        assert group.seeds == (0, 1, 2)
        rates = {"ca": 0.9 + 0.007 * jobs, "asr": 0.003 * jobs, "ra": 0.8 - 0.001 * jobs**2}
        for name, expected in rates.items():
            spread = group.values[f"after.{name}"]
            assert spread.mean == pytest.approx(expected.mean())
            assert spread.std == pytest.approx(expected.std(ddof=1))
        der = (0.938 - rates["asr"] - np.maximum(0, 0.918 - rates["ca"]) + 1) / 2
        assert group.values["der"].mean == pytest.approx(der.mean())
        assert group.values["der"].std == pytest.approx(der.std(ddof=1))
        assert group.values["before.ca"] == Spread(0.918, 0.0, 3)
        assert group.values["seconds.purify"].mean == pytest.approx(3.21)


def test_costs_are_averaged_and_may_be_missing(tmp_path: Path) -> None:
    images = {"name": "digits", "num_clean_tuning": 1000}
    put(tmp_path, "0", seed=0, data=images, peak_memory_mb={"purify": 1200.0})
    put(tmp_path, "1", seed=1, data=images)
    summary = summarize_sweep(tmp_path)
    assert summary.groups[0].values["peak_memory_mb.purify"] == Spread(1200.0, None, 1)
    assert summary.groups[0].values["peak_memory_mb.train"] == Spread(None, None, 0)
    table = write_sweep(summary, tmp_path)[1].read_text("utf-8")
    assert "| seconds | peak MiB | clean images |" in table
    assert "| 3.2 ± 0.0 | 1200 | 1000 ± 0 |" in table


def test_says_what_is_the_same_everywhere(tmp_path: Path) -> None:
    sweep(tmp_path)
    shared = summarize_sweep(tmp_path).shared
    assert shared["defense=fst"] == [("alpha", 0.2)]
    assert ("attack.poison_ratio", 0.05) in shared[""]
    assert ("model", "small_resnet") in shared[""]


@pytest.mark.parametrize(
    ("first", "second", "name"),
    [
        ({"defense": {"name": "fst", "alpha": 0.1}}, {}, "defense.alpha"),
        ({"attack": {"name": "blended", "poison_ratio": 0.1}}, {}, "attack.poison_ratio"),
        ({"data": {"name": "gtsrb"}}, {}, "data"),
        ({"overrides": ["tuning.max_epochs=5"]}, {"overrides": []}, "tuning.max_epochs"),
    ],
)
def test_a_difference_makes_a_group(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], name: str
) -> None:
    put(tmp_path, "0", **first)
    put(tmp_path, "1", **second)
    summary = summarize_sweep(tmp_path)
    assert len(summary.groups) == 2
    assert name in summary.varying


def test_chosen_numbers_do_not_split_a_group(tmp_path: Path) -> None:
    for seed, alpha in enumerate((0.1, 0.3)):
        put(
            tmp_path,
            str(seed),
            seed=seed,
            defense={"name": "fst", "alpha": alpha, "auto": ["alpha"]},
        )
    summary = summarize_sweep(tmp_path)
    (group,) = summary.groups
    assert group.n == 2
    assert sweep_notes(summary) == []
    counts = {"ca": (500, 1000), "asr": (610, 1000), "ra": (55, 1000), "control": (500, 1000)}
    put(tmp_path, "2", seed=2, before=Score.from_counts(counts))
    (note,) = sweep_notes(summarize_sweep(tmp_path))
    assert "did not take (ASR < 50 %, or hardly above its control) in 1 of 3 runs" in note


def test_counts_attacks_that_did_not_take(tmp_path: Path) -> None:
    put(tmp_path, "0", seed=0, before=score(900, 100))
    put(tmp_path, "1", seed=1)
    (group,) = summarize_sweep(tmp_path).groups
    assert group.not_implanted == 1
    assert group.values["der"].n == 1
    assert group.values["before.asr"].mean == pytest.approx((0.1 + 0.938) / 2)


def test_a_control_rate_is_measured_and_not_chosen(tmp_path: Path) -> None:
    """It differs from seed to seed, and these are one experiment all the same."""
    for seed, control in enumerate((12, 30)):
        counts = {
            "ca": (918, 1000),
            "asr": (938, 1000),
            "ra": (55, 1000),
            "control": (control, 1000),
        }
        put(tmp_path, str(seed), seed=seed, before=Score.from_counts(counts))
    (group,) = summarize_sweep(tmp_path).groups
    assert group.n == 2


def test_counts_runs_that_are_no_success(tmp_path: Path) -> None:
    missed = {"what": "No class was suspected", "why": "Class 3 came closest."}
    for seed, found in enumerate(([missed], [], [missed])):
        put(
            tmp_path,
            str(seed),
            seed=seed,
            defense={"name": "nc", "findings": {"shortfalls": found}},
        )
    summary = summarize_sweep(tmp_path)
    (group,) = summary.groups
    assert group.shortfalls == {"No class was suspected": 2}
    assert [run.shortfalls for run in summary.runs] == [(missed["what"],), (), (missed["what"],)]
    assert any(
        note.endswith("defense=nc: no success in 2 of 3 runs. No class was suspected.")
        for note in sweep_notes(summary)
    )


def test_lists_what_failed_and_keeps_the_rest(tmp_path: Path) -> None:
    put(tmp_path, "0")
    write_json(
        tmp_path / "1" / "failure.json",
        {"error": "ValueError: no such file", "overrides": ["attack=wanet"], "log": "1/run.log"},
    )
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "results.json").write_text("{")
    (tmp_path / "3" / ".hydra").mkdir(parents=True)
    (tmp_path / "4").mkdir()
    (tmp_path / "4" / "failure.json").write_text("oops")
    write_json(tmp_path / "5" / "failure.json", [1])
    put(tmp_path, "6/nested", seed=1)
    write_json(tmp_path / "6" / "nested" / "failure.json", {"error": "later"})
    (tmp_path / "notes").mkdir()
    write_json(tmp_path / "results.json", {"not": "a job"})

    summary = summarize_sweep(tmp_path)
    assert [run.job for run in summary.runs] == ["0", "6/nested"]
    assert summary.failures[0] == Failure(
        "1", "ValueError: no such file", ("attack=wanet",), "1/run.log"
    )
    errors = {failure.job: failure.error for failure in summary.failures}
    assert list(errors) == ["1", "2", "3", "4", "5", "6/nested"]
    assert errors["2"].startswith("results.json is no JSON")
    assert errors["3"] == "left no results: killed, or still running"
    assert "failure.json cannot be read" in errors["4"]
    assert errors["5"] == "failed; failure.json does not say why"
    assert errors["6/nested"] == "later"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ("ValueError: a\nsecond line", "ValueError: a"),
        ("Traceback (most recent call last):\n  File\nKeyError: 'b'\n", "KeyError: 'b'"),
        (" \n ", "no reason given"),
        ("x" * 300, "x" * 197 + "..."),
    ],
)
def test_an_error_in_one_line(error: str, line: str) -> None:
    assert Failure("0", error).line == line


def test_an_empty_folder_has_no_runs_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    summary = summarize_sweep(tmp_path)
    assert (summary.runs, summary.groups, summary.failures) == ((), (), ())
    assert summary.varying == ()
    with pytest.raises(NotADirectoryError, match="the folder of a sweep"):
        summarize_sweep(tmp_path / "nowhere")


def test_results_of_another_version_are_a_failure(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "results.json").write_text(json.dumps({**example(), "schema_version": 9}))
    (failure,) = summarize_sweep(tmp_path).failures
    assert "`schema_version` to be 1, but got 9" in failure.error
