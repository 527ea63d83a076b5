"""Records of runs, and the tables of the docs that are rendered from them."""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from benchmarks import tables
from benchmarks.records import command_of, keep, record_of


def results(seed: int = 0, ca: float = 0.9, asr: float = 0.05, **defense: Any) -> dict[str, Any]:
    return {
        "task": "purify",
        "seed": seed,
        "attack": {"name": "blended", "poison_ratio": 0.01},
        "defense": {"name": "fst", **defense},
        "model": {"name": "resnet18"},
        "before": {"ca": 0.95, "asr": 1.0, "ra": 0.0},
        "after": {"ca": ca, "asr": asr, "ra": 0.8},
        "der": 0.95,
        "environment": {"precision": "bf16-mixed"},
        "checkpoints": {"purified": "/home/me/x"},
        "overrides": ["attack=blended", f"seed={seed}", "data.root=/home/me", "paths.store=/x"],
    }


def record(**given: Any) -> dict[str, Any]:
    return record_of(results(**given), commit="abc", hardware="a machine", date="2026-01-02")


def test_the_docs_show_what_the_records_say() -> None:
    for page in tables.pages():
        text = page.read_text(encoding="utf-8")
        assert tables.update(text) == text, f"{page.name} is behind its records: run `make tables`"


def test_a_record_names_command_and_commit_and_no_folder_of_the_machine() -> None:
    found = record()
    assert found["command"] == "python purify.py attack=blended seed=0 data.root=DIR"
    assert (found["commit"], found["hardware"]) == ("abc", "a machine")
    assert "/home" not in json.dumps(found)
    assert "/x" not in json.dumps(found)


def test_the_commit_of_the_run_wins_and_is_required() -> None:
    own = results()
    own["environment"]["commit"] = "def"
    assert record_of(own, commit="abc", hardware="", date="")["commit"] == "def"
    with pytest.raises(ValueError, match="commit"):
        record_of(results(), commit="", hardware="", date="")


def test_two_commands_never_share_a_file(tmp_path: Path) -> None:
    runs = []
    for number, seed_command in enumerate(("a=1", "a=2", "a=1")):
        run = tmp_path / str(number)
        run.mkdir()
        (run / "results.json").write_text(json.dumps(results() | {"overrides": [seed_command]}))
        runs.append(run)
    kept = keep(tmp_path / "kept", runs, commit="abc", hardware="m")
    assert [path.name for path in kept] == [
        "resnet18-blended_0.01-fst-0.json",
        "resnet18-blended_0.01-fst-0-2.json",
        "resnet18-blended_0.01-fst-0.json",
    ]
    with pytest.raises(ValueError, match="finished run"):
        keep(tmp_path / "kept", [tmp_path], commit="abc")


def test_seeds_of_a_setting_are_one_row_with_their_mean_and_deviation() -> None:
    rates = (0.9, 0.92, 0.97)
    spec = tables.Spec.parse("* | rows: attack.name defense.alpha | values: after.ca lost der")
    rows = [record(seed=seed, ca=ca, alpha=0.2) for seed, ca in enumerate(rates)]
    lines = tables.render(spec, [record(alpha=0.1), *rows]).splitlines()
    assert lines[0] == "| attack | alpha | CA after | CA lost | DER |"
    assert lines[2] == "| `blended` | 0.1 | 90.00 | 5.00 | 0.950 |"
    mean, spread = 100 * statistics.mean(rates), 100 * statistics.stdev(rates)
    lost = 95 - mean
    assert lines[3] == (
        f"| `blended` | 0.2 | {mean:.2f} ± {spread:.2f} | {lost:.2f} ± {spread:.2f} "
        "| 0.950 ± 0.000 |"
    )


def test_what_was_not_measured_is_a_dash() -> None:
    spec = tables.Spec.parse("* | rows: defense.name | values: seconds.purify before.asr")
    unknown = record() | {"before": {"ca": 0.9, "asr": None}}
    assert tables.render(spec, [unknown]).splitlines()[2] == "| `fst` | - | - |"


def test_a_page_is_updated_between_its_markers_alone(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.json").write_text(json.dumps(record()))
    head = "<!-- table: set/*.json | rows: defense.name | values: after.asr -->\n"
    page = f"Before.\n\n{head}old\n<!-- end of table -->\nAfter.\n"
    new = tables.update(page, tmp_path)
    assert new.startswith(f"Before.\n\n{head}| defense | ASR after |\n")
    assert "| `fst` | 5.00 |" in new
    assert "old" not in new
    assert new.endswith("<!-- end of table -->\nAfter.\n")
    assert tables.update(new, tmp_path) == new


def test_a_table_without_records_and_a_comment_of_another_form_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found none"):
        tables.read_records("nothing/*.json", tmp_path)
    with pytest.raises(ValueError, match="Expected `PATTERN"):
        tables.Spec.parse("digits/*.json | columns: x")


def test_keys_that_only_say_where_a_run_writes_are_left_out() -> None:
    given = ["hydra.run.dir=/a", "resume=true", "+model.width=3", "checkpoint=/b/c.pt"]
    assert command_of("purify", given) == "python purify.py +model.width=3 checkpoint=FILE"
