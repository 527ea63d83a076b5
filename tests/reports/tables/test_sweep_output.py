import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fst_lightning.reports import (
    render_sweep,
    summarize_sweep,
    validate,
    write_json,
    write_leaderboard,
    write_sweep,
)
from tests.reports.example import example, score, text_console

AFTER = {("badnets", 0): 900, ("badnets", 1): 920, ("blended", 0): 930, ("blended", 1): 950}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for job, ((attack, seed), right) in enumerate(AFTER.items()):
        results = example(
            seed=seed,
            attack={"name": attack, "poison_ratio": 0.05},
            after=score(right, 10 * job, 700),
            overrides=[f"attack={attack}", f"seed={seed}"],
        )
        write_json(tmp_path / str(job) / "results.json", results)
    failure = {"error": "ValueError: a | b", "overrides": ["attack=x"], "log": "4/run.log"}
    write_json(tmp_path / "4" / "failure.json", failure)
    return tmp_path


def rendered(folder: Path, width: int, *, terminal: bool = False) -> str:
    console, file = text_console(width, terminal=terminal)
    render_sweep(summarize_sweep(folder), console)
    return re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue())


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("terminal", [False, True])
def test_shows_means_and_deviations_at_any_width(folder: Path, width: int, terminal: bool) -> None:
    text = rendered(folder, width, terminal=terminal)
    compact = text.replace(" ± ", "±")
    spread = 100 * np.std([0.90, 0.92], ddof=1)
    assert f"91.00±{spread:.2f}" in compact
    assert f"94.00±{spread:.2f}" in compact
    assert "91.80±0.00" in compact
    assert f"0.50±{100 * np.std([0.0, 0.01], ddof=1):.2f}" in compact
    assert "70.00±0.00" in compact
    assert "…" not in text
    assert "4 runs, 2 experiments, 1 failed" in text
    assert "failed   4 (attack=x) - ValueError: a | b (see 4/run.log)" in text
    assert "defense.alpha=0.2" in text


def test_fits_a_usual_terminal(folder: Path) -> None:
    for width in (80, 120):
        lines = rendered(folder, width).splitlines()
        table = [line for line in lines if "±" in line]
        assert len(table) == 4
        assert max(map(len, table)) <= width


def test_prints_where_only_ascii_can_be_shown(folder: Path) -> None:
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding="ascii") as file:
        console = Console(file=file, width=120, force_terminal=False, _environ={})
        render_sweep(summarize_sweep(folder), console)
        file.flush()
        text = raw.getvalue().decode("ascii")
    assert "91.00 +- 1.41" in text


def test_a_single_seed_has_no_deviation(tmp_path: Path) -> None:
    write_json(tmp_path / "0" / "results.json", example())
    text = rendered(tmp_path, 120)
    assert "±" not in text
    assert text.count("92.20") == 1


def test_training_runs_have_one_line(tmp_path: Path) -> None:
    results = example(task="train", after=None, defense=None)
    write_json(tmp_path / "0" / "results.json", results)
    text = rendered(tmp_path, 120)
    assert "after" not in text
    assert "12.3" in text


def test_sampled_numbers_are_short_and_one_network_has_one_warning(tmp_path: Path) -> None:
    for job, lr in enumerate((0.025951315088475820, 0.02595999999, 0.0061108173643544730)):
        overrides = [f"tuning.optimizer.lr={lr}"]
        alpha = {"name": "fst", "alpha": lr / 3}
        results = example(before=score(900, 100), defense=alpha, overrides=overrides)
        write_json(tmp_path / str(job) / "results.json", results)
    text = rendered(tmp_path, 200)
    for number in ("0.02595 ", "0.02596 ", "0.00611 "):
        assert number in text
    assert "0.0061108" not in text
    assert text.count("did not take") == 1
    assert "in 3 of 3 runs" in text


def test_says_what_spoils_a_mean(tmp_path: Path) -> None:
    for job in range(2):
        results = example(seed=3, before=score(900, 100 + 800 * job))
        write_json(tmp_path / str(job) / "results.json", results)
    text = rendered(tmp_path, 80)
    assert "the attack did not take (ASR < 50 %) in 1 of 2 runs" in text
    assert "more than one run with seed 3" in text
    assert "the attack did not take" in write_sweep(summarize_sweep(tmp_path), tmp_path)[
        1
    ].read_text("utf-8")


def test_an_empty_sweep_says_so(tmp_path: Path) -> None:
    assert "0 runs, 0 experiments, 0 failed" in rendered(tmp_path, 80)
    paths = write_sweep(summarize_sweep(tmp_path), tmp_path / "out")
    assert paths[1].read_text() == "No runs.\n"
    assert rows(paths[0]) == rows(paths[3]) == []


def test_writes_five_files(folder: Path) -> None:
    paths = write_sweep(summarize_sweep(folder), folder)
    assert [path.name for path in paths] == [
        "table.csv",
        "table.md",
        "table.json",
        "runs.csv",
        "table.tex",
    ]
    again = summarize_sweep(folder)
    assert len(again.runs) == 4, "what was written must not be taken for a run"


def test_csv_and_json_hold_the_same_numbers(folder: Path) -> None:
    table, _, as_json, *_ = write_sweep(summarize_sweep(folder), folder)
    groups = json.loads(as_json.read_text("utf-8"))["groups"]
    for row, group, attack in zip(rows(table), groups, ("badnets", "blended"), strict=True):
        assert row["attack"] == group["settings"]["attack"] == attack
        assert (row["n"], row["seeds"]) == ("2", "0 1")
        assert row["attack.poison_ratio"] == "0.05"
        right = np.array([AFTER[attack, seed] for seed in (0, 1)]) / 1000
        assert float(row["after.ca.mean"]) == pytest.approx(right.mean())
        assert float(row["after.ca.std"]) == pytest.approx(right.std(ddof=1))
        for name, spread in group["values"].items():
            for part in ("mean", "std", "n"):
                cell = row[f"{name}.{part}"]
                assert (float(cell) if cell else None) == spread[part]


def test_one_line_a_run(folder: Path) -> None:
    *_, runs, _ = write_sweep(summarize_sweep(folder), folder)
    found = rows(runs)
    assert [row["status"] for row in found] == ["finished"] * 4 + ["failed"]
    for row, ((attack, seed), right) in zip(found[:4], AFTER.items(), strict=True):
        assert (row["attack"], row["seed"]) == (attack, str(seed))
        assert float(row["after.ca"]) == right / 1000
        assert row["implanted"] == "True"
        assert row["shortfalls"] == ""
    assert found[4]["job"] == "4"
    assert found[4]["error"] == "ValueError: a | b"
    assert found[4]["overrides"] == "attack=x"
    assert found[4]["log"] == "4/run.log"


def test_markdown_is_a_table(folder: Path) -> None:
    text = write_sweep(summarize_sweep(folder), folder)[1].read_text("utf-8")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| badnets | fst | 2 | 91.80 ± 0.00 | 91.00 ± 1.41 |")
    assert r"- Failed: 4 (attack=x) - ValueError: a \| b (see 4/run.log)" in text


@pytest.mark.parametrize("name", ["=cmd()", "+1+1", "-x", "@sum", "\t=x", "a|b<c"])
def test_names_are_harmless(tmp_path: Path, name: str) -> None:
    results: dict[str, Any] = example(attack={"name": name})
    validate(results)
    write_json(tmp_path / "0" / "results.json", results)
    table, markdown, as_json, runs, _ = write_sweep(summarize_sweep(tmp_path), tmp_path)
    for path in (table, runs):
        (row,) = rows(path)
        assert row["attack"] == (name if name[0] == "a" else f"'{name}")
        assert not row["defense.alpha"].startswith("'")
    assert json.loads(as_json.read_text())["groups"][0]["settings"]["attack"] == name
    if name == "a|b<c":
        assert r"| a\|b&lt;c | fst |" in markdown.read_text("utf-8")


def test_numbers_that_are_negative_stay_numbers(tmp_path: Path) -> None:
    results = example(defense={"name": "fst", "alpha": -0.5})
    write_json(tmp_path / "0" / "results.json", results)
    assert rows(write_sweep(summarize_sweep(tmp_path), tmp_path)[0])[0]["defense.alpha"] == "-0.5"


HOSTILE = (
    *("[red]x", "x[/red]", "[/red]", "[link=https://example.org]x[/link]", "[retuning]", ":smile:"),
    *("\x1b[2J", "\x1b]8;;https://example.org\x07x\x1b]8;;\x07", "\x9b31m", "\x7f", "\b\b\b"),
    *("\u202egnp.exe", "\ufeffx", "a\nb", "a\r\nb", "=1+1", "\x01=1+1", "[x](https://example.org)"),
    *("![x](https://example.org)", "<script>", "a|b", "%$&", "\\input{x}", "\udcff"),
)


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_text_stays_text_in_every_output(name: str, tmp_path: Path) -> None:
    """As a setting, in an override and in an error; nothing of it is obeyed anywhere."""
    for job, setting in enumerate((name, "other")):
        content = example(attack={"name": setting}, overrides=[f"robustness={setting}"])
        write_json(tmp_path / str(job) / "results.json", content)
    failure = {"error": name, "overrides": [f"attack={name}"], "log": name}
    write_json(tmp_path / "2" / "failure.json", failure)
    summary = summarize_sweep(tmp_path)
    for terminal in (True, False):
        raw = io.StringIO()
        console = Console(file=raw, width=200, force_terminal=terminal, _environ={})
        render_sweep(summary, console)
        plain = re.sub(r"\x1b\[[0-9;]*m", "", raw.getvalue())
        assert all(letter.isprintable() or letter == "\n" for letter in plain)
        # Rich draws colors of its own, and no link, and the text as it is.
        assert "\x1b]8" not in raw.getvalue()
        seen = "".join(letter if letter.isprintable() else " " for letter in name)
        assert seen.encode("utf-8", "replace").decode() in plain
    files = [*write_sweep(summary, tmp_path), write_leaderboard(summary, tmp_path)]
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert all(letter.isprintable() or letter == "\n" for letter in text), file
    markdown = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert not re.search(r"(?<!\\)\[", markdown)
    cells = [cell for row in csv.reader((tmp_path / "runs.csv").open()) for cell in row]
    assert not any(cell.startswith(("=", "+", "@")) for cell in cells)
    found = json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))
    assert found["failures"][0]["error"] == name
