import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fst_lightning.reports import (
    leaderboard_page,
    render_leaderboard,
    summarize_sweep,
    write_json,
    write_sweep,
)
from fst_lightning.reports.html.leaderboard import pareto
from tests.reports.example import example, score
from tests.reports.html.pages import read

EVIL = "</text><script>x</script>"
AFTER = {  # right and attacked of 1,000, for seeds 0 and 1
    ("badnets", "fst"): [(900, 10), (910, 30)],
    ("badnets", "ft"): [(920, 400), (930, 600)],
    ("blended", "fst"): [(890, 20), (890, 20)],
    ("blended", "ft"): [(880, 700), (900, 900)],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    job = 0
    for (attack, defense), runs in AFTER.items():
        for seed, (right, attacked) in enumerate(runs):
            results = example(
                seed=seed,
                attack={"name": attack},
                defense={"name": defense},
                after=score(right, attacked, 0),
            )
            write_json(tmp_path / str(job) / "results.json", results)
            job += 1
    failure = {"error": f"ValueError: {EVIL}", "overrides": [f"attack={EVIL}"]}
    write_json(tmp_path / str(job) / "failure.json", failure)
    return tmp_path


def test_means_and_deviations_stand_in_the_cells(folder: Path) -> None:
    page = read(render_leaderboard(summarize_sweep(folder)))
    charts = [attributes["aria-label"] for attributes in page.named("svg")]
    assert charts[:4] == [
        "Clean accuracy, %",
        "Attack success rate, %",
        "Robust accuracy, %",
        "Defense effectiveness rating",
    ]
    for text in (
        "90.5 ± 0.7",
        "92.5 ± 0.7",
        "50.0 ± 14.1",
        "2.00 ± 1.41",
        "80.0 ± 14.1",
        "89.0 ± 0.0",
    ):
        assert text in page.text
    assert "91.8 ± 0.0" in page.text  # before


def test_the_headline_names_the_best_mean_rating(folder: Path) -> None:
    """DER = (0.938 - asr - max(0, 0.918 - ca) + 1) / 2."""
    text = render_leaderboard(summarize_sweep(folder))
    ratings = [
        (0.938 - asr / 1000 - max(0, 0.918 - ca / 1000) + 1) / 2
        for name in ("badnets", "blended")
        for ca, asr in AFTER[name, "fst"]
    ]
    expected = f"fst rates best: DER {sum(ratings) / 4:.3f}, averaged over 2 attacks."
    assert f"<h1>{expected}</h1>" in text


def test_a_difference_below_the_standard_error_is_said_to_decide_nothing(tmp_path: Path) -> None:
    """The error is worked out from the runs: of each defense the mean of four, in two strata."""
    after = {
        ("badnets", "fst"): [20, 60],
        ("badnets", "ft"): [10, 70],
        ("blended", "fst"): [30, 30],
        ("blended", "ft"): [32, 40],
    }
    for (attack, defense), rates in after.items():
        for seed, rate in enumerate(rates):
            results = example(
                seed=seed,
                attack={"name": attack},
                defense={"name": defense},
                after=score(918, rate, 0),
            )
            write_json(tmp_path / f"{attack}{defense}{seed}" / "results.json", results)
    lead = read(render_leaderboard(summarize_sweep(tmp_path))).text
    # DER = 1 - (asr_after + (1 - asr_before)) / 2 here: half the differences of the ASR.
    gap = (sum(after["badnets", "ft"] + after["blended", "ft"]) - 140) / 4 / 2 / 1000
    deviations = [(b - a) / 2**0.5 / 2 / 1000 for a, b in after.values()]
    error = (sum(s**2 / 2 for s in deviations)) ** 0.5 / 2
    assert gap < error
    assert f"The first two differ by {gap:.4f}, less than the standard error" in lead
    assert f"over seeds, {error:.4f}:" in lead
    assert f"fst rates best: DER {(0.938 - 0.035 + 1) / 2:.3f}" in lead
    for path in tmp_path.glob("*ft0/results.json"):
        path.unlink()
    assert "less than" not in read(render_leaderboard(summarize_sweep(tmp_path))).text


def test_hostile_names_stay_text(folder: Path, tmp_path: Path) -> None:
    write_json(
        folder / "20" / "results.json",
        example(attack={"name": EVIL}, defense={"name": EVIL}, overrides=[f"data={EVIL}"]),
    )
    text = render_leaderboard(summarize_sweep(folder))
    assert "<script" not in text
    assert read(text).text.count(EVIL) > 4


@pytest.mark.parametrize("jobs", [[], [{"task": "train", "after": None, "defense": None}]])
def test_a_sweep_without_purification_has_its_table(
    tmp_path: Path, jobs: list[dict[str, object]]
) -> None:
    for job, changes in enumerate(jobs):
        write_json(tmp_path / str(job) / "results.json", example(**changes))
    page = read(render_leaderboard(summarize_sweep(tmp_path)))
    assert f"{len(jobs)} runs" in page.text
    assert page.named("svg") == []


def test_unknown_models_have_no_attack_success(tmp_path: Path) -> None:
    results = example(attack={"name": "none"}, before=score(918), after=score(900))
    write_json(tmp_path / "0" / "results.json", results)
    labels = [
        a["aria-label"] for a in read(render_leaderboard(summarize_sweep(tmp_path))).named("svg")
    ]
    assert labels == ["Clean accuracy, %"]


def unknown(folder: Path, job: str, ca: int, **more: Any) -> None:
    """A purification of a network whose trigger nobody knows."""
    results = example(
        attack={"name": "none"},
        defense={"name": job},
        before=score(918),
        after=score(ca),
        shift={"head_cosine": 0.25, "feature_cosine": 0.5},
    )
    write_json(folder / job / "results.json", {**results, **more})


def scan(p_value: float, trigger: dict[str, float] | None) -> dict[str, Any]:
    detectors = {
        name: {"p_value": p_value, "suspected_class": 1, "statistics": [0.0], "seconds": 1.0}
        for name in ("mm_bd", "nc")
    }
    detectors["nc"]["trigger"] = trigger
    facts = {"verdict": "no_sign", "p_value": p_value, "suspected_class": 1, "strongest": "mm_bd"}
    return {**facts, "calibration": "parametric", "num_references": 0, "detectors": detectors}


def test_without_a_trigger_what_can_be_measured_decides(tmp_path: Path) -> None:
    """First how often the recovered trigger works, then the p-value, then the clean accuracy."""
    for job, ca, rate in (("ft", 917, 0.9), ("fst", 900, 0.031)):
        found = {"before": scan(0.001, {"success": 0.99, "success_after": rate}), "after": None}
        unknown(tmp_path, job, ca, detection=found)
    trigger = {"success": 0.97, "success_after": 0.02}
    scans = {"before": scan(0.001, trigger), "after": scan(0.4, None)}
    unknown(tmp_path, "nad", 910, detection=scans)
    unknown(tmp_path, "clp", 910, detection={"before": scan(0.001, None), "after": scan(0.3, None)})
    unknown(tmp_path, "bnp", 890)
    unknown(tmp_path, "ep", 915)
    page = leaderboard_page(summarize_sweep(tmp_path))
    (table,) = (figure.table for figure in page.sections[0].figures)
    assert table is not None
    assert [row[2] for row in table.rows] == ["nad", "fst", "ft", "clp", "ep", "bnp"]
    first, second = table.rows[:2]
    assert first[3:] == ["\N{MINUS SIGN}0.80", "97.0", "2.00", "0.0010", "0.400", "0.250", "0.500"]
    assert second[4:6] == ["99.0", "3.10"]
    assert page.headline.startswith("nad leaves least of the recovered trigger: it works on 2.00 %")
    read(page.html())


def test_cells_lead_to_the_reports_of_the_runs(folder: Path) -> None:
    """Reports are at 0 and 1, the two seeds of fst on badnets; a name can lead nowhere else."""
    evil = folder / "javascript:alert(1)"
    write_json(evil / "results.json", example(attack={"name": "sig"}, defense={"name": "ft"}))
    for job in (folder / "0", folder / "1", evil):
        (job / "report.html").touch()
    page = read(render_leaderboard(summarize_sweep(folder)))
    links = [link.get("href") or link["xlink:href"] for link in page.named("a")]
    outside = [link for link in links if not link.startswith("#")]
    assert set(outside) == {
        "./0/report.html",
        "./1/report.html",
        "./javascript%3Aalert%281%29/report.html",
    }
    assert outside.count("./1/report.html") == 1  # in the table
    assert outside.count("./0/report.html") == 5  # and in the maps of CA, ASR, RA and DER
    assert all(link.startswith("#") for link in links[: len(page.named("section"))])


def test_settings_of_a_search_keep_the_digits_that_differ(tmp_path: Path) -> None:
    recipes(tmp_path, [0.0123456, 0.0123499, 0.5], [score(900, 100, 600)] * 3)
    page = read(render_leaderboard(summarize_sweep(tmp_path)))
    for name in ("fst lr=0.012346", "fst lr=0.01235", "fst lr=0.5"):
        assert name in page.text


def test_other_settings_make_boards_of_their_own(tmp_path: Path) -> None:
    for job, data in enumerate(("digits", "gtsrb")):
        results = example(data={"name": data, "num_classes": 10})
        write_json(tmp_path / str(job) / "results.json", results)
    text = read(render_leaderboard(summarize_sweep(tmp_path))).text
    assert "Defense against attack (data=digits)" in text
    assert "Defense against attack (data=gtsrb)" in text


def recipes(folder: Path, rates: list[float], after: list[Any]) -> None:
    for job, (rate, figures) in enumerate(zip(rates, after, strict=True)):
        results = example(
            overrides=[f"tuning.optimizer.lr={rate}", f"logger={'csv' if job else 'none'}"],
            after=figures,
        )
        write_json(folder / str(job) / "results.json", results)


def test_the_recipe_of_a_tuning_is_a_part_of_the_defense(tmp_path: Path) -> None:
    recipes(tmp_path, [0.01, 0.1], [score(900, 100, 600), score(880, 50, 700)])
    page = read(render_leaderboard(summarize_sweep(tmp_path)))
    assert page.text.count("Defense against attack") == 2  # in the contents and as a heading
    assert "fst lr=0.01" in page.text
    assert "fst lr=0.1 rates best" in page.text
    assert "logger" not in page.text  # changes nothing that is measured


def test_of_many_settings_the_frontier_is_named(tmp_path: Path) -> None:
    """Every rate costs accuracy and removes more; the fifth alone is beaten by the sixth."""
    rates = [float(i) for i in range(1, 26)]
    after = [score(900 - 2 * i, 600 - 20 * i, 300 + 10 * i) for i in range(25)]
    after[4] = score(800, 599, 310)
    recipes(tmp_path, rates, after)
    text = render_leaderboard(summarize_sweep(tmp_path))
    for heading in ("attack success", "robust accuracy"):
        chart = text.split(f"<h2>Clean accuracy against {heading}</h2>")[1].split("</svg>")[0]
        labels = re.findall(r'class="beside">.*?<text[^>]*>([^<]*)', chart)
        assert sorted(labels) == sorted(f"fst lr={rate}" for rate in rates if rate != 5.0), heading
        assert ">fst</text>" in chart  # the legend


def test_more_robust_accuracy_is_better(tmp_path: Path) -> None:
    """The first one has both more CA and more RA than the second."""
    recipes(tmp_path, [0.01, 0.1], [score(900, 100, 700), score(880, 50, 600)])
    text = render_leaderboard(summarize_sweep(tmp_path))
    chart = text.split("<h2>Clean accuracy against robust accuracy</h2>")[1].split("</svg>")[0]
    (line,) = re.findall(r'class="frontier"><path d="([^"]*)"', chart)
    assert line.count("L") == 0
    chart = text.split("<h2>Clean accuracy against attack success</h2>")[1].split("</svg>")[0]
    (line,) = re.findall(r'class="frontier"><path d="([^"]*)"', chart)
    assert line.count("L") == 1


places = st.tuples(st.integers(0, 6), st.integers(0, 6)).map(lambda p: (float(p[0]), float(p[1])))


@given(st.lists(places, max_size=12))
def test_the_frontier_is_what_nothing_beats(points: list[tuple[float, float]]) -> None:
    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a != b and a[0] <= b[0] and a[1] >= b[1]

    expected = [i for i, p in enumerate(points) if not any(beats(q, p) for q in points)]
    assert sorted(pareto(points)) == expected
    xs = [points[i][0] for i in pareto(points)]
    assert xs == sorted(xs)


def test_latex_has_the_figures_and_stays_latex(folder: Path) -> None:
    table = write_sweep(summarize_sweep(folder), folder)[-1].read_text("utf-8")
    lines = table.splitlines()
    assert lines[2] == r"\begin{tabular}{llrrrrrrrrrrr}"
    rows = [line for line in lines if line.endswith(r"\\")]
    assert len(rows) == 1 + 4
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {12}
    assert r"badnets & fst & 2 & 91.80 $\pm$ 0.00 & 90.50 $\pm$ 0.71" in table
    after = lines.index(r"\end{tabular}}")
    assert all(line.startswith("% ") for line in lines[after + 1 :])


def test_latex_escapes_what_it_would_run(tmp_path: Path) -> None:
    write_json(tmp_path / "0" / "results.json", example(defense={"name": r"\a_b%&$#{~^}"}))
    table = write_sweep(summarize_sweep(tmp_path), tmp_path)[-1].read_text("utf-8")
    assert r"\textbackslash{}a\_b\%\&\$\#\{\textasciitilde{}\textasciicircum{}\}" in table
