import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fst_lightning.metrics import paired_drop_interval
from fst_lightning.reports import Score, build_results, notes, plain
from tests.reports.example import example, score

KEYS = [
    *("schema_version", "task", "seed", "attack", "defense", "data", "model", "training", "tuning"),
    *("before", "after"),
    *("der", "ci95", "seconds", "environment", "checkpoints", "overrides"),
]


def test_holds_the_promised_keys() -> None:
    results = example(overrides=["attack=blended"])
    assert list(results) == KEYS
    assert results["schema_version"] == 1
    assert list(results["attack"]) == [
        "name",
        "poison_ratio",
        "target_label",
        "control_rate",
        "implanted",
    ]
    assert results["defense"] == {"name": "fst", "alpha": 0.2}
    assert set(results["data"]) == {
        "name",
        "num_classes",
        "num_train",
        "num_poisoned",
        "num_clean_tuning",
        "num_test",
        "num_triggered_test",
    }
    assert results["data"]["num_poisoned"] is None
    assert results["model"] == {"name": "small_resnet", "head": "fc", "num_parameters": 77_000}
    assert results["before"] == {"ca": 0.918, "asr": 0.938, "ra": 0.055}
    assert results["after"] == {"ca": 0.922, "asr": 0.016, "ra": 0.871}
    assert results["overrides"] == ["attack=blended"]


def test_works_out_the_rating_and_the_intervals() -> None:
    results = example()
    assert results["attack"]["implanted"] is True
    assert results["der"] == pytest.approx((0.938 - 0.016 - 0 + 1) / 2)
    # By name, for SciPy has no types.
    binomtest = importlib.import_module("scipy.stats").binomtest
    for when, right in (("before", (918, 938, 55)), ("after", (922, 16, 871))):
        for name, k in zip(("ca", "asr", "ra"), right, strict=True):
            exact = binomtest(k, 1000).proportion_ci(0.95, method="wilson")
            assert results["ci95"][when][name] == pytest.approx([exact.low, exact.high])


def test_without_an_attack_only_the_clean_accuracy_is_given() -> None:
    results = example(attack={"name": "none"}, before=score(950), after=score(940))
    assert results["attack"] == {
        "name": "none",
        "poison_ratio": None,
        "target_label": None,
        "control_rate": None,
        "implanted": None,
    }
    assert results["before"] == {"ca": 0.95, "asr": None, "ra": None}
    assert results["der"] is None
    assert results["ci95"]["after"]["asr"] is None


def test_training_has_no_after() -> None:
    results = example(task="train", after=None, defense=None)
    assert results["after"] is None
    assert results["ci95"]["after"] is None
    assert results["defense"] is None
    assert results["der"] is None
    with pytest.raises(ValueError, match="`after` to be null if `task` is 'train'"):
        example(task="train")


@pytest.mark.parametrize(
    ("asr", "implanted"), [(499, False), (500, True), (1000, True), (0, False)]
)
def test_credits_no_defense_where_the_attack_did_not_take(asr: int, implanted: bool) -> None:
    results = example(before=score(900, asr), after=score(900, 0))
    assert results["attack"]["implanted"] is implanted
    assert (results["der"] is not None) is implanted


@pytest.mark.parametrize(
    ("asr", "control", "rows", "implanted"),
    [
        (610, 500, 1000, False),  # half of all clean images of other classes get the target anyway
        (610, 20, 1000, True),
        (970, 500, 1000, True),  # such a network can have a backdoor as well
        (510, 20, 1000, True),
        (509, 20, 1000, False),
        (738, 518, 1000, False),  # a clean network that leans to the target, and a blended picture
        (499, 0, 1000, False),
        (990, 990, 1000, False),
        (12, 10, 20, False),  # so few images show nothing
        (20, 0, 20, True),
    ],
)
def test_a_high_rate_without_a_trigger_is_no_backdoor(
    asr: int, control: int, rows: int, implanted: bool
) -> None:
    before = Score.from_counts(
        {"ca": (rows, rows), "asr": (asr, rows), "ra": (0, rows), "control": (control, rows)}
    )
    results = example(before=before, after=score(rows, 0, rows=rows))
    assert results["attack"]["control_rate"] == control / rows
    assert results["attack"]["implanted"] is implanted
    assert (results["der"] is not None) is implanted
    assert results["before"]["asr"] == asr / rows  # nothing is subtracted
    found = [note for note in notes(results) if "did not take" in note]
    assert bool(found) is not implanted
    if not implanted and asr >= rows / 2:
        assert f"{100 * control / rows:.2f} % of the clean images of other classes" in found[0]


def test_the_change_of_the_accuracy_has_an_interval_of_its_own() -> None:
    results = example(answers=(12, 16, 1000))
    low, high = paired_drop_interval(12, 16, 1000)
    assert results["ci95"]["change"] == {"ca": [-high, -low]}
    assert "change" not in example()["ci95"]


def test_keeps_further_keys_and_makes_values_plain() -> None:
    results = example(
        attack={"name": "badnets", "size": np.int64(3), "where": (1, 2)},
        defense={"name": "fst", "alpha": torch.tensor(0.25), "auto": ["alpha"]},
        checkpoints={"backdoored": Path("a") / "b", "purified": None},
        seconds={"train": math.nan, "purify": np.float32(0.5)},
    )
    assert results["attack"]["size"] == 3
    assert results["attack"]["where"] == [1, 2]
    assert results["defense"] == {"name": "fst", "alpha": 0.25, "auto": ["alpha"]}
    assert results["checkpoints"] == {"backdoored": str(Path("a/b")), "purified": None}
    assert results["seconds"] == {"train": None, "purify": 0.5, "evaluate": None}


@settings(deadline=None)
@given(st.integers(1, 500), st.data())
def test_score_from_counts_divides(rows: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, rows))
    found = Score.from_counts({"ca": (right, rows), "asr": (0, 0)})
    assert found.ca is not None
    assert round(found.ca * rows) == right
    assert found.asr is found.ra is None


@pytest.mark.parametrize("bad", [-0.1, 1.5, 91.8, math.inf])
def test_score_refuses_percent(bad: float) -> None:
    with pytest.raises(ValueError, match=r"`asr` to be in \[0, 1\], but got"):
        Score(0.5, bad)


def test_score_refuses_a_rate_that_is_not_its_counts() -> None:
    with pytest.raises(ValueError, match=r"`ca` to be 9 of 10 rows, but got 0\.8"):
        Score(0.8, counts={"ca": (9, 10)})


def test_a_rate_that_is_no_number_is_null() -> None:
    results = example(before=Score(0.9, math.nan), after=Score(0.9))
    assert results["before"]["asr"] is None
    assert results["ci95"]["before"] == {"ca": None, "asr": None, "ra": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, "`seed` to be at least 0, but got -1"),
        ({"task": "test"}, "`task` to be 'train' or 'purify' or 'detect', but got 'test'"),
        ({"attack": {"poison_ratio": 0.1}}, "`attack.name` to be string, but got None"),
        ({"attack": {"name": "x", "poison_ratio": 5}}, "`attack.poison_ratio` to be at most 1"),
        ({"data": {"name": "x", "num_test": 1.5}}, "`data.num_test` to be integer or null"),
        ({"seconds": {"train": -1.0}}, "`seconds.train` to be at least 0"),
        ({"defense": {"alpha": 0.2}}, "a key `defense.name`"),
    ],
)
def test_refuses_what_breaks_the_schema(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        example(**changes)


def test_plain_names_what_it_cannot_convert() -> None:
    with pytest.raises(TypeError, match=r"`results.a\[1\]` to be a plain value.*but got Tensor"):
        plain({"a": [1, torch.zeros(2)]})
    with pytest.raises(TypeError, match=r"results.model.extra.*object"):
        build_results(
            task="train",
            seed=0,
            attack={"name": "none"},
            data={"name": "d"},
            model={"name": "m", "extra": object()},
            before=Score(0.5),
        )
