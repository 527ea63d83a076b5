"""A sweep that was stopped goes on where it was."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fst_lightning.cli.resume import continued_sweep, is_finished
from tests.cli.conftest import Command

SWEEP = ("-m", "defense=ft,lp", "seed=0,1")


def folders(here: Path) -> list[Path]:
    return sorted((here / "multirun" / "purify").iterdir())


def test_finished_jobs_are_not_run_again(command: Command) -> None:
    first = command(*SWEEP)
    assert first.code == 0
    (sweep,) = folders(first.folder)
    table = (sweep / "table.csv").read_text(encoding="utf-8")
    kept = {job: (sweep / f"{job}/results.json").stat().st_mtime_ns for job in range(4)}
    (sweep / "2" / "results.json").unlink()
    (sweep / "3" / "results.json").write_text("{", encoding="utf-8")
    again = command(*SWEEP, "resume=true")
    assert again.code == 0
    assert folders(first.folder) == [sweep]
    assert again.out.count("finished before") == 2
    times = {job: (sweep / f"{job}/results.json").stat().st_mtime_ns for job in range(4)}
    assert {job for job in range(4) if times[job] != kept[job]} == {2, 3}
    json.loads((sweep / "3" / "results.json").read_text(encoding="utf-8"))
    rates = [line.split(",")[:4] for line in table.splitlines()]
    after = (sweep / "table.csv").read_text(encoding="utf-8").splitlines()
    assert rates == [line.split(",")[:4] for line in after]


def test_another_sweep_is_not_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, line in (("a", "seed=0,1"), ("b", "seed=0,2"), ("c", "seed=0,2")):
        saved = tmp_path / "multirun" / "purify" / name / "multirun.yaml"
        saved.parent.mkdir(parents=True)
        hydra = '["hydra.mode=MULTIRUN"]'
        saved.write_text(f'hydra: {{overrides: {{task: ["{line}"], hydra: {hydra}}}}}\n', "utf-8")
    find = continued_sweep
    assert find("purify", ["-m", "seed=0,1", "resume=true"]) == [
        "hydra.sweep.dir=multirun/purify/a"
    ]
    assert find("purify", ["-m", "seed=0,2", "resume=true"]) == [
        "hydra.sweep.dir=multirun/purify/c"
    ]
    assert not capsys.readouterr().out
    assert find("purify", ["-m", "seed=0,3", "resume=true"]) == []
    assert (
        f"no sweep of the same overrides in {tmp_path}/multirun/purify" in capsys.readouterr().out
    )
    assert find("purify", ["-m", "seed=0,1"]) == []
    assert find("purify", ["seed=0", "resume=true"]) == []
    assert find("purify", ["-m", "seed=0,1", "resume=true", "hydra.sweep.dir=x"]) == []


def save(folder: Path, config: str, results: str = "{}") -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    (folder / "results.json").write_text(results, encoding="utf-8")


def test_a_finished_run_has_this_configuration_and_results(tmp_path: Path) -> None:
    config = OmegaConf.create({"seed": 0, "attack": {"a": [1, "${seed}"]}, "resume": True})
    text = "seed: 0\nattack: {a: [1, 0]}\nresume: false\ndebug: true\n"
    save(tmp_path, text)
    assert is_finished(config, tmp_path)
    for other in (text.replace("seed: 0", "seed: 1"), text + "more: 1\n", "seed: 0\n", "[]", ""):
        save(tmp_path, other)
        assert not is_finished(config, tmp_path)
    for results in ("[]", "", "{"):
        save(tmp_path, text, results)
        assert not is_finished(config, tmp_path)
    (tmp_path / "config.yaml").unlink()  # or the results would be taken for those of a run


def test_nothing_in_a_sweeps_folder_is_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CANARY", "seed=0,1")
    saved = tmp_path / "multirun" / "purify" / "a" / "multirun.yaml"
    saved.parent.mkdir(parents=True)
    for lines in ('["${oc.env:CANARY}"]', "${oc.env:CANARY}", "3"):
        saved.write_text(f"hydra: {{overrides: {{task: {lines}}}}}\n", encoding="utf-8")
        assert continued_sweep("purify", ["-m", "seed=0,1", "resume=true"]) == []
    save(tmp_path, "seed: ${oc.env:CANARY}\n")
    assert not is_finished(OmegaConf.create({"seed": "seed=0,1"}), tmp_path)
    (tmp_path / "config.yaml").unlink()
