"""`robustness=[...]`: from the command line to results.json, the report and the picture."""

from collections.abc import Callable
from typing import Any

import pytest

from fst_lightning.pipelines import run_pipeline
from fst_lightning.reports import validate
from tests.pipelines.conftest import Start

Models = Callable[[], set[str]]
QUICK = (
    "robustness.retuning.share=0.5",
    "robustness.reactivation.images=10",
    "robustness.reactivation.epochs=1",
    "robustness.reactivation.width=4",
    "robustness.connectivity.points=3",
)
ALL = "robustness=[retuning,reactivation,connectivity]"


def test_all_of_them_at_once(
    start: Start, models: Models, capsys: pytest.CaptureFixture[str]
) -> None:
    run = start(ALL, *QUICK, "report.enabled=true")
    results = run_pipeline(run)
    validate(results)
    found = results["robustness"]
    assert set(found) == {"retuning", "reactivation", "connectivity"}
    # The same images and, but for the precision of the sums, the same network as in the scores.
    assert found["retuning"]["o_asr"] == pytest.approx(results["after"]["asr"])
    assert found["retuning"]["ca_before"] == pytest.approx(results["after"]["ca"])
    assert found["connectivity"]["t"] == [0, 0.5, 1]
    assert results["seconds"]["robustness"] > 0
    assert len(models()) == 2  # the backdoored network, and one that never was
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    for words in ("After the defense", "P-ASR", "never backdoored", "in a straight line"):
        assert words in page
    assert (run.folder / "charts" / "after-the-defense-connectivity.png").is_file()
    said = capsys.readouterr().out
    assert "retuning: ASR before the retuning" in said
    assert "connectivity: ASR from" in said
    again = run_pipeline(start(ALL, *QUICK))
    assert again["robustness"] == found


def test_one_alone_and_none(start: Start, models: Models) -> None:
    alone = run_pipeline(start("robustness=connectivity", "robustness.connectivity.points=2"))
    assert set(alone["robustness"]) == {"connectivity"}
    none = run_pipeline(start("robustness=[]"))
    assert "robustness" not in none
    assert none["after"] == alone["after"]
    assert len(models()) == 1


def test_without_a_trigger_it_is_refused_before_anything_is_trained(
    start: Start, models: Models
) -> None:
    with pytest.raises(ValueError, match=r"trigger is known for robustness=retuning.*attack=none"):
        run_pipeline(start("robustness=[retuning]", "attack=none"))
    assert not models()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("robustness.connectivity.points=1", "points"),
        ("robustness.connectivity.images=abc", "images"),
    ],
)
def test_arguments_are_checked_before_anything_is_trained(
    override: str, message: str, start: Start, models: Models
) -> None:
    with pytest.raises(ValueError, match=message):
        run_pipeline(start("robustness=[connectivity]", override))
    assert not models()


@pytest.mark.parametrize("attack", ["wanet", "lira", "sig"])
def test_other_kinds_of_attacks(attack: str, start: Start) -> None:
    """Cover rows, a learned trigger that is not rounded, clean labels."""
    more: dict[str, Any] = {"lira": ["attack.poison_ratio=0.2"]}
    lines = [f"attack={attack}", ALL, *QUICK, *more.get(attack, [])]
    found = run_pipeline(start(*lines))["robustness"]
    assert 0 <= found["retuning"]["p_asr"] <= 1
