import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fst_lightning.reports import Curves, read_curves, render_page, run_page, validate, verdict
from fst_lightning.reports.numbers import rate_text
from fst_lightning.reports.results.curves import steps_per_epoch, without_penalty
from fst_lightning.reports.results.evidence import Answers, Evidence, Example, Recovered, Snapshot
from fst_lightning.reports.results.notes import notes
from tests.reports.example import example, score
from tests.reports.html.pages import read

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
CURVES: Curves = {
    "val/ca": {0: 0.5, 1: 0.9},
    "val/asr": {0: 1.0, 1: 0.1},
    "train/loss": {0: 2.0, 1: 1.5},
    "train/penalty": {0: 1.25, 1: 1.0},
    "train/head_cosine": {0: 0.0, 1: -0.5},
}


def snapshot(classes: int = 3, triggered: bool = True) -> Snapshot:
    random = np.random.default_rng(0)

    def answers(wanted: bool) -> Answers:
        labels = np.arange(12) % classes
        said, aims = (labels + 1) % classes, np.zeros(12, dtype=int)
        features = random.normal(size=(12, 5))
        sure = random.uniform(0.4, 1, 12)
        return Answers(labels, said, sure, features, aims if wanted else None)

    head = random.normal(size=(classes, 5))
    return Snapshot(answers(False), answers(True) if triggered else None, head)


def evidence(**changes: Any) -> Evidence:
    image = np.zeros((4, 4, 3), dtype=np.uint8)
    found = Recovered((image,) * 3, (image,), (image + 9,))
    values: dict[str, Any] = {
        "classes": ("cat", "dog", EVIL),
        "before": snapshot(),
        "after": snapshot(),
        "target": 0,
        "examples": (Example(image, image + 9, 2, 0, 2),),
        "layers": {"conv": 0.5, EVIL: 0.25},
        "recovered": {"before": {"nc": found}},
        "num_test": 12,
        "num_triggered": 12,
    }
    return Evidence(**{**values, **changes})


def test_figures_are_those_of_the_results() -> None:
    results = example()
    page = read(render_page(results, evidence(), {"purify": CURVES}, "python purify.py"))
    for when in ("before", "after"):
        for name in ("ca", "asr", "ra"):
            assert page.keyed[f"{when}.{name}"] == f"{rate_text(results[when][name])} %"
            low, high = results["ci95"][when][name]
            assert f"{rate_text(low)} to {rate_text(high)}" in page.text
    assert page.keyed["der"] == f"{results['der']:.3f}"
    raw = re.search(r"<summary>results.json</summary>\n<pre>(.*?)</pre>", _page(results), re.S)
    assert raw is not None
    assert json.loads(html.unescape(raw[1])) == results


def _page(results: dict[str, Any]) -> str:
    return render_page(results, evidence(), {"train": CURVES, "purify": CURVES}, "a 'b c'")


def test_every_section_is_explained() -> None:
    page = run_page(example(), evidence(), {"train": CURVES, "purify": CURVES})
    file = Path(__file__).parents[3] / "docs" / "figures.md"
    documented = file.read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", documented, re.MULTILINE)
    for section in page.sections:
        assert section.explained in [heading.lower().replace(" ", "-") for heading in headings]


def test_shows_every_part() -> None:
    text = _page(example() | {"detection": {"before": scan(0.01), "after": scan(0.4)}})
    page = read(text)
    headings = re.findall(r"<h2>(.*?)</h2>", text)
    assert headings == [
        "Outcome",
        "What was done",
        "Training, epoch by epoch",
        "Purification, epoch by epoch",
        "The trigger",
        "Features",
        "Confusion matrices",
        "Clean accuracy by class",
        "What the defense changed",
        "Calibration on clean images",
        "Is it backdoored?",
        "Time and memory",
        "Where this comes from",
    ]
    assert "a 'b c'" in page.text
    # Three of an example; three recovered patterns, and one of them on an image.
    assert len(page.named("img")) == 3 + 3 + 2
    assert "Backdoor found (class 1), p = 0.0100" in page.text


def test_costs_are_shown_by_stage() -> None:
    images = {"name": "digits", "num_clean_tuning": 1000}
    page = read(_page(example(peak_memory_mb={"purify": 1234.6}, data=images)))
    costs = page.text.rpartition("Time and memory")[2].partition("Where this comes from")[0]
    shown = "timepeak memory Train12.3 s Purify3.2 s1,235 MiB Evaluate0.5 s"
    explained = "How to read this: docs/figures.md#time-and-memory"
    assert " ".join(costs.split()) == f"{shown} Clean images used: 1,000. {explained}"


def test_every_text_is_escaped() -> None:
    results = example(
        attack={"name": EVIL, "poison_ratio": 0.05, "target_label": 0, "image": EVIL},
        defense={"name": EVIL, "findings": {EVIL: [EVIL]}},
        data={"name": EVIL, "num_classes": 3},
        model={"name": EVIL, "arguments": {EVIL: EVIL}},
        environment={"device": EVIL, "versions": {EVIL: EVIL}},
        checkpoints={"backdoored": EVIL},
        overrides=[EVIL],
    )
    curves: Curves = {f"train/{EVIL}": {0: 1.0}, "val/ca": {0: 1.0}}
    text = render_page(results, evidence(), {EVIL: curves}, EVIL)
    page = read(text)
    assert "<script" not in text
    assert "<img src=x" not in text
    assert page.text.count("<script>alert(1)</script>") > 10


def test_a_page_can_do_without_evidence_and_curves() -> None:
    page = read(render_page(example()))
    assert "99" not in page.keyed["after.ca"]
    assert page.named("svg") == []


@pytest.mark.parametrize(
    "changes",
    [
        {"target": None},
        {"after": None},
        {"examples": ()},
        {"before": snapshot(triggered=False), "after": snapshot(triggered=False), "examples": ()},
        {"layers": {}, "recovered": {}},
        {"projection": "tsne"},
        {"layers": {f"layer{i}": i / 100 for i in range(200)}},
        {
            "before": Snapshot(Answers(*3 * [np.zeros(2, dtype=int)])),
            "after": Snapshot(Answers(*3 * [np.zeros(2, dtype=int)])),
        },
        {"classes": tuple(map(str, range(90))), "before": snapshot(90), "after": snapshot(90)},
    ],
)
def test_any_evidence_makes_a_page(changes: dict[str, Any]) -> None:
    assert read(render_page(example(), evidence(**changes))).named("svg")


def test_a_training_has_no_after() -> None:
    results = example(task="train", after=None, defense=None)
    page = read(render_page(results, evidence(after=None)))
    assert "after.ca" not in page.keyed
    assert page.keyed["before.asr"] == "93.8 %"
    words = page.text.rpartition("The trigger")[2].partition("Time and memory")[0]
    assert "before" not in words.lower()


def headline(**changes: Any) -> tuple[str, str]:
    found = verdict(example(**changes))
    return found.headline, found.tone


def test_the_headline_answers() -> None:
    assert headline() == (
        "The backdoor is gone; it cost no clean accuracy (0.40 points were won).",
        "good",
    )
    assert headline(after=score(900, 50, 800)) == (
        "The backdoor is gone; it cost 1.80 points of clean accuracy.",
        "good",
    )
    assert headline(after=score(800, 50, 800)) == (
        "The backdoor is gone, but it cost 11.8 points of clean accuracy.",
        "bad",
    )
    weak, tone = headline(after=score(918, 51, 800))
    assert (weak[:37], tone) == ("The backdoor is weakened, not gone: 5", "bad")
    assert headline(after=score(918, 500, 400))[0].startswith("The backdoor is still there: 50.0")
    assert headline(after=score(918, 938, 55), defense={"name": "none"})[0] == (
        "The backdoor is there; nothing was done about it (defense=none)."
    )
    assert headline(before=score(918, 300, 55))[0].startswith("There was no backdoor to speak of")
    assert headline(after=score(110, 0, 0))[0] == "The defense destroyed the network."
    assert (
        headline(task="train", after=None)[0] == "The backdoor is in: it opens 93.8 % of the time."
    )


def missed(what: str, why: str = "Because.") -> dict[str, Any]:
    return {"name": "anp", "findings": {"shortfalls": [{"what": what, "why": why}]}}


def test_a_shortfall_is_never_praised() -> None:
    """The same figures with and without one: the headline opens with it, and is no good news."""
    same = score(918, 938, 55)
    for after, rest in (
        (same, "The backdoor is still there: 93.8 % succeed; clean accuracy did not fall."),
        (score(922, 16, 871), "The backdoor is gone; clean accuracy did not fall."),
        (score(600, 16, 500), "The backdoor is gone, but it cost 31.8 points of clean accuracy."),
    ):
        head, tone = headline(after=after, defense=missed("Nothing was pruned"))
        assert head == f"Nothing was pruned. {rest}"
        assert tone != "good"
    unknown_attack = example(
        attack={"name": "none"},
        defense=missed("No class was suspected"),
        before=score(918),
        after=score(918),
    )
    assert verdict(unknown_attack).headline == (
        "No class was suspected. Clean accuracy did not fall. Whether it has a backdoor is not "
        "known."
    )
    assert notes(unknown_attack) == ["No class was suspected. Because."]
    found = unknown(scan(0.01, (0.99, 0.01)), scan(0.4))
    assert verdict(found).tone == "good"
    found["defense"] = missed("No class was suspected")
    assert verdict(found).tone == ""


def test_an_unknown_model_is_told_what_is_not_known() -> None:
    results = example(attack={"name": "none"}, before=score(918), after=score(900))
    found = verdict(results)
    assert "Whether it has a backdoor is not known" in found.headline
    assert "does not prove" in found.caution
    page = read(render_page(results, evidence(target=None)))
    assert "after.asr" not in page.keyed
    assert "Attack success" not in page.text


def scan(p_value: float, trigger: tuple[float, float | None] | None = None) -> dict[str, Any]:
    """What ``nc`` found; perhaps how often its trigger works, before and after."""
    first, second = trigger or (0.0, None)
    block = {
        "images": 1000,
        "success": first,
        "ci95": [max(0.0, first - 0.01), min(1.0, first + 0.01)],
        "control": 0.002,
        "success_after": second,
        "ci95_after": None if second is None else [second / 2, min(1.0, 2 * second)],
        "control_after": None if second is None else 0.003,
    }
    alarm = p_value <= 0.05
    detector = {
        "p_value": p_value,
        "suspected_class": 1,
        "score": 1.0,
        "threshold": 0.5,
        "references": [],
        "statistics": [0.1, 0.9, 0.2],
        "seconds": 1.5,
        "trigger": block if trigger else None,
    }
    return {
        "verdict": "backdoored" if alarm else "no_sign",
        "reason": None,
        "p_value": p_value,
        "suspected_class": 1 if alarm else None,
        "calibration": "parametric",
        "num_references": 0,
        "strongest": "nc",
        "detectors": {"nc": detector},
    }


def unknown(before: dict[str, Any], after: dict[str, Any] | None, defense: str = "fst") -> Any:
    values: dict[str, Any] = {"attack": {"name": "none"}, "defense": {"name": defense}}
    results = example(**values, before=score(918), after=score(900))
    results["detection"] = {"before": before, "after": after}
    validate(results)
    return results


def test_the_headline_on_an_unknown_model_says_what_a_scan_found() -> None:
    found = verdict(unknown(scan(0.004, (0.99, 0.031)), scan(0.4)))
    assert found.headline == (
        "The sign of a backdoor is no longer found; it cost 1.80 points of clean accuracy."
    )
    assert found.tone == "good"
    assert found.lead == (
        "Before: backdoor found (class 1), p = 0.0040, by the detectors' own null distributions; "
        "the strongest sign is that of nc. After: no sign of a backdoor, p = 0.4000, by the "
        "detectors' own null distributions. "
        "The recovered trigger sends 99.0 % (98.0 to 100; without it 0.20) of 1,000 test images "
        "of other classes to class 1; in the purified network, 3.10 % (1.55 to 6.20; without it "
        "0.30). "
        "Clean accuracy: 91.8 % before, 90.0 % after."
    )
    assert "hide a backdoor" in found.caution


@pytest.mark.parametrize(
    ("before", "after", "head", "tone"),
    [
        (0.01, 0.02, "The sign of a backdoor is found after the defense, too;", "bad"),
        (0.3, 0.02, "A sign of a backdoor is found only after the defense;", "bad"),
        (0.3, 0.4, "No sign of a backdoor was found, before or after the defense;", ""),
        (0.01, 0.4, "The sign of a backdoor is no longer found;", ""),
    ],
)
def test_the_headline_follows_both_scans(before: float, after: float, head: str, tone: str) -> None:
    found = verdict(unknown(scan(before), scan(after)))
    assert found.headline.startswith(head)
    assert found.tone == tone


def test_a_trigger_that_still_works_is_no_good_news() -> None:
    """The detector is silent, and the trigger that it found before works: that is what counts."""
    found = verdict(unknown(scan(0.01, (0.99, 0.8)), scan(0.6)))
    assert "still works on 80.0 %" in found.headline
    assert found.tone == "bad"


def test_a_scan_that_cannot_tell_is_no_good_news() -> None:
    unsure = scan(0.6) | {"verdict": "cannot_tell", "reason": "it guesses"}
    found = verdict(unknown(scan(0.01, (0.99, 0.01)), unsure))
    assert found.headline.startswith("The scans cannot tell whether a backdoor is gone;")
    assert found.tone == ""
    assert "cannot tell, because it guesses" in found.lead


def test_a_network_that_was_only_scanned() -> None:
    found = verdict(unknown(scan(0.01), None, "none"))
    assert found.headline.startswith("Backdoor found (class 1), p = 0.0100")
    assert found.tone == "bad"
    values: dict[str, Any] = {"task": "detect", "attack": {"name": "none"}, "before": score(918)}
    results = example(**values, after=None, defense=None)
    results["detection"] = {"before": scan(0.3, (0.2, None)), "after": None}
    found = verdict(results)
    assert found.headline.startswith("No sign of a backdoor, p = 0.3000")
    assert found.lead.startswith("The recovered trigger sends 20.0 % (19.0 to 21.0;")
    page = read(render_page(results, evidence(target=None, after=None)))
    assert "nc, class by class" in page.text


def test_the_calibration_among_clean_networks_is_drawn() -> None:
    ranked = scan(0.05) | {"calibration": "reference", "num_references": 19}
    ranked["detectors"]["nc"]["references"] = [i / 20 for i in range(19)]
    charts = run_page(unknown(ranked, None, "none")).charts()
    assert "is-it-backdoored-nc-among-clean-networks" in charts
    page = render_page(unknown(ranked, None, "none"))
    assert "0 of 19 clean networks score as high or higher: p = (0 + 1) / (19 + 1)." in page


def test_a_network_that_was_only_measured_was_not_changed() -> None:
    results = example(
        attack={"name": "none"}, defense={"name": "none"}, before=score(918), after=score(918)
    )
    assert verdict(results).headline.startswith("The network was only measured.")


def test_the_scan_stands_first_where_nothing_else_is_known() -> None:
    scans = {"detection": {"before": scan(0.01), "after": scan(0.4)}}
    known, nameless = example() | scans, unknown(scan(0.01), scan(0.4))
    clean = {"before": snapshot(triggered=False), "after": snapshot(triggered=False)}
    for results, seen, place in (
        (known, evidence(), 6),
        (nameless, evidence(target=None, examples=(), **clean), 0),
    ):
        headings = re.findall(r"<h2>(.*?)</h2>", render_page(results, seen))[2:]
        assert headings[place] == "Is it backdoored?"


def test_warnings_stand_at_the_top() -> None:
    results = example(before=score(918, 300, 55))
    (warning,) = notes(results)
    assert warning in read(render_page(results)).text


def test_curves_start_with_the_network_that_came_in() -> None:
    results = example()
    before, after = results["before"]["asr"], results["after"]["asr"]
    assert before != after
    charts = [run_page(results, None, {stage: CURVES}).charts() for stage in ("train", "purify")]
    lines = [
        [np.asarray(line.get_xydata()).tolist() for line in chart.figure.axes[0].lines]
        for found in charts
        for name, chart in found.items()
        if name.endswith("rates-on-the-test-set")
    ]
    assert lines[0][1] == [[1, 100], [2, 10]]
    assert lines[1][1] == [[0, pytest.approx(100 * before)], [1, 100], [2, 10]]


def test_what_stays_the_same_is_a_sentence_and_no_chart() -> None:
    flat = {"train/head_norm": {0: 7.5, 1: 7.5}, "train/loss": {0: 1.0, 1: 1.0}}
    page = render_page(example(), None, {"purify": flat})
    assert "The same in every epoch: Norm of the head: 7.5." in read(page).text
    assert page.count("<svg") == 1


def test_reads_what_the_logger_writes(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text(
        "epoch,step,val/ca,train/loss,train/penalty\n"
        "0,0,0.1,,\n0,3,0.5,,\n0,3,,2.0,1.25\n1,7,nan,,\n1,7,,1.5,\n,,0.7,,\nx\n2,9,,,\n"
    )
    curves = read_curves(file)
    assert curves == {
        "val/ca": {0: 0.5},
        "train/loss": {0: 2.0, 1: 1.5},
        "train/penalty": {0: 1.25},
        "step": {0: 3, 1: 7},
    }
    assert steps_per_epoch(curves) == 4
    assert steps_per_epoch({"step": {0: 3, 1: 8}}) is None
    assert steps_per_epoch({}) is None
    assert without_penalty(curves) == {0: 0.75, 1: 1.5}
    assert read_curves(tmp_path / "none.csv") == {}
    file.write_bytes(b"\xff\xfe\x00")
    assert read_curves(file) == {}
