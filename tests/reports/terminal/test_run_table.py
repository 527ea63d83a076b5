import re
from typing import Any

import pytest

from fst_lightning.metrics import paired_drop_interval
from fst_lightning.reports import Score, at_chance, notes, render_run
from tests.reports.example import example, score, text_console


def rendered(results: dict[str, Any], width: int = 80, *, terminal: bool = False) -> str:
    console, file = text_console(width, terminal=terminal)
    render_run(results, console, written=["run/results.json"], folder="outputs/run 1")
    return file.getvalue()


def cells(text: str, label: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.strip().startswith(label))
    return line.strip().removeprefix(label).split()


@pytest.mark.parametrize("width", [20, 80, 120])
@pytest.mark.parametrize("terminal", [False, True])
def test_shows_every_number_whole_at_any_width(width: int, terminal: bool) -> None:
    text = re.sub(r"\x1b\[[0-9;]*m", "", rendered(example(), width, terminal=terminal))
    assert cells(text, "before") == ["91.80", "93.80", "5.50"]
    assert cells(text, "after") == ["92.20", "1.60", "87.10"]
    assert cells(text, "difference") == ["+0.40", "-92.20", "+81.60"]
    assert "89.94 to 93.34" in text
    assert "92.13 to 95.13" in text
    assert "4.25 to 7.09" in text
    assert "DER      0.9610" in text
    assert "train 12.3 s, purify 3.2 s, evaluate 0.5 s" in text
    assert "store/a.ckpt" in text
    assert "run/purified.safetensors" in text
    assert "run/results.json" in text
    assert text.splitlines()[-1].split(maxsplit=1) == ["written", "outputs/run 1"]
    assert "…" not in text


def test_names_the_choices_of_the_run() -> None:
    heading = rendered(example()).splitlines()[1]
    assert heading == (
        "purify  attack=blended (poison_ratio 0.05, target_label 0)  defense=fst (alpha 0.2)  "
        "data=digits  model=small_resnet  seed=0"
    )


def test_is_plain_ascii_without_colors_when_it_is_no_terminal() -> None:
    text = rendered(example())
    assert text.isascii()
    assert "\x1b" not in text
    assert "\x1b[" in rendered(example(), terminal=True)


def test_training_has_one_row() -> None:
    text = rendered(example(task="train", after=None, defense=None))
    assert cells(text, "backdoored ") == ["91.80", "93.80", "5.50"]
    assert "after" not in text
    assert "difference" not in text
    assert "DER" not in text
    clean = example(task="train", after=None, attack={"name": "none"}, before=score(950))
    assert cells(rendered(clean), "trained") == ["95.00", "-", "-"]


def test_without_an_attack_the_other_rates_are_left_open() -> None:
    results = example(attack={"name": "none"}, before=score(950), after=score(940))
    assert cells(rendered(results), "difference") == ["-1.00", "-", "-"]
    assert "warning" not in rendered(results)


def test_a_run_that_was_not_purified_has_no_difference() -> None:
    text = rendered(example(after=None))
    assert cells(text, "before") == ["91.80", "93.80", "5.50"]
    assert "difference" not in text


def test_says_that_the_attack_did_not_take() -> None:
    results = example(before=score(900, 123), after=score(900, 0))
    text = rendered(results, 40)
    assert "The attack did not take: ASR 12.30 % < 50 %; no defense is credited." in text
    assert "DER" not in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"before": score(100, 938), "after": score(100, 10)}, "data.classes"),
        ({"after": score(99, 0)}, "The defense has destroyed the network"),
        ({"task": "train", "before": score(118, 938), "after": None}, "learned nothing"),
    ],
)
def test_warns_of_an_accuracy_at_chance(changes: dict[str, Any], words: str) -> None:
    found = notes(example(**changes))
    assert len(found) == 1
    assert "is at chance (guessing among 10 classes gives 10.00 %)" in found[0]
    assert words in found[0]
    assert found[0] in rendered(example(**changes))


def test_chance_is_a_matter_of_the_interval() -> None:
    """The same 20 % of 10 classes, of 20 and of 1,000 test images; 12 % of 10,000."""
    few = example(before=score(4, 20, rows=20), after=score(4, 0, rows=20))
    assert "is at chance" in notes(few)[0]
    assert notes(example(before=score(200, 938), after=score(200, 0))) == []
    many = example(before=score(1200, 9380, rows=10_000), after=score(1200, 0, rows=10_000))
    assert notes(many) == []


def test_too_few_test_images_are_told_with_the_number_that_would_do() -> None:
    """As on 60 test images, where 6.7 points were seen and 18 lost."""
    results = example(
        before=score(57, 60, rows=60),
        after=score(53, 0, rows=60),
        answers=(4, 0, 60),
        data={"name": "own", "num_classes": 10, "num_test": 60},
    )
    (found,) = notes(results)
    low, high = paired_drop_interval(4, 0, 60)
    assert f"-6.67 points, 95 % interval {-100 * high:+.2f} to {-100 * low:+.2f}." in found
    number = re.search(r"About ([\d,]+) would resolve one point", found)
    assert number is not None
    needed = int(number[1].replace(",", ""))
    low, high = paired_drop_interval(round(4 / 60 * needed), 0, needed)
    assert 0.006 < (high - low) / 2 < 0.012
    assert cells(rendered(results), "95 % interval")
    assert notes(example(answers=(12, 16, 1000))) == []
    ruined = example(before=score(1000, 938), after=score(600, 0), answers=(400, 0, 1000))
    assert notes(ruined) == []  # 40 points, give or take three
    text = rendered(example(answers=(12, 16, 1000)))
    low, high = paired_drop_interval(12, 16, 1000)
    assert f"{-100 * high:+.2f} to {-100 * low:+.2f}" in text


def test_the_control_stands_beside_the_rates() -> None:
    counts = {"ca": (918, 1000), "asr": (938, 1000), "ra": (55, 1000), "control": (12, 1000)}
    text = rendered(example(before=Score.from_counts(counts)))
    assert "control  1.20 % of the clean images of other classes" in text
    assert "control" not in rendered(example())


def test_a_healthy_run_has_no_notes() -> None:
    assert notes(example()) == []


@pytest.mark.parametrize(
    ("ca", "num_classes", "expected"),
    [
        (0.1, 10, True),
        (0.12, 10, True),
        (0.121, 10, False),
        (0.0, 10, True),
        (0.5, 2, True),
        (0.9, 2, False),
        (None, 10, False),
        (0.0, None, False),
    ],
)
def test_at_chance(ca: float | None, num_classes: int | None, expected: bool) -> None:
    assert at_chance(ca, num_classes) is expected


def test_names_cannot_format_or_break_the_output() -> None:
    text = rendered(example(attack={"name": "[red]x[/red]\x1b[31m\n:smile:"}))
    assert "attack=[red]x[/red] [31m :smile:" in text
    assert "\x1b" not in text


def test_a_recovered_trigger_is_a_line_of_its_scan() -> None:
    results = example(attack={"name": "none"}, before=score(918), after=score(900))
    trigger = {
        "images": 900,
        "success": 0.99,
        "ci95": [0.98, 0.995],
        "control": 0.01,
        "success_after": 0.031,
        "ci95_after": [0.02, 0.05],
        "control_after": 0.02,
    }
    detector = {
        "p_value": 0.01,
        "suspected_class": 1,
        "statistics": [0.1, 0.9],
        "seconds": 2.0,
        "trigger": trigger,
    }
    scan = {
        "verdict": "backdoored",
        "p_value": 0.01,
        "suspected_class": 1,
        "calibration": "parametric",
        "strongest": "nc",
        "detectors": {"nc": detector},
    }
    results["detection"] = {"before": scan, "after": None}
    lines = rendered(results).splitlines()
    assert any(line.startswith("scan     before: backdoor found (class 1)") for line in lines)
    assert (
        "         The recovered trigger sends 99.0 % (98.0 to 99.5; without it 1.00) of 900 test "
        "images of other classes to class 1; in the purified network, 3.10 % (2.00 to 5.00; "
        "without it 2.00)." in lines
    )
    assert "incoming network   store/a.ckpt" in lines
