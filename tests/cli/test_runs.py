"""The commands from end to end."""

import csv
import fnmatch
import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from fst_lightning.configuration import groups
from fst_lightning.reports import read_results, validate
from tests.cli.conftest import Command, Outcome
from tests.cli.processes import Finished, Started
from tests.runs import tiny

ROOT = Path(__file__).parents[2]


def results(outcome: Outcome, folder: str = "run") -> dict[str, Any]:
    read, error = read_results(outcome.folder / folder / "results.json")
    assert error is None
    assert read is not None
    return read


def test_train_then_purify_its_file(command: Command) -> None:
    """A file of our own needs neither model= nor attack=."""
    trained = command("hydra.run.dir=run", "attack=blended", "model.width=3", task="train")
    assert trained.code == 0
    assert "ASR" in trained.out
    before = results(trained)
    assert before["task"] == "train"
    silent = [line for line in tiny("purify") if not line.startswith("model")]
    path = before["checkpoints"]["backdoored"]
    lines = [f"checkpoint={path}", "defense=ft", "hydra.run.dir=other"]
    purified = command(*silent, *lines, small=False)
    assert purified.code == 0
    found = results(purified, "other")
    assert found["before"] == before["before"]
    assert found["attack"]["name"] == "blended"
    assert found["model"]["arguments"]["width"] == 3


@pytest.mark.parametrize(("fail_on", "code"), [("p<1.0", 3), ("p<0.0000001", 0), (None, 0)])
def test_a_scan_may_fail_a_pipeline(command: Command, fail_on: str | None, code: int) -> None:
    quick = ["detector=[head_weights]", "data.num_classes=4", "training.max_epochs=8"]
    quick += ["data.num_train=160", "data.num_test=80"]
    fail = [] if fail_on is None else [f"fail_on='{fail_on}'"]
    outcome = command("hydra.run.dir=run", *quick, *fail, task="detect")
    assert outcome.code == code
    found = results(outcome)
    assert found["task"] == "detect"
    assert f"p = {found['detection']['before']['p_value']:.4f}" in outcome.out
    assert "verdict" in outcome.out


def test_purify_leaves_valid_results_and_shows_them(command: Command) -> None:
    outcome = command("hydra.run.dir=run", "attack=blended", "defense=lp", "seed=3")
    assert outcome.code == 0
    assert outcome.err == ""
    found = results(outcome)
    assert (found["attack"]["name"], found["defense"]["name"], found["seed"]) == (
        "blended",
        "lp",
        3,
    )
    assert "attack=blended" in found["overrides"]
    for word in ("before", "after", "CA %", "ASR %", "RA %", "purified.safetensors"):
        assert word in outcome.out
    assert {"run/config.yaml", "run/purified.safetensors", "run/results.json"} <= outcome.written
    assert len([name for name in outcome.written if name.startswith("store/models/")]) == 2


def test_by_default_runs_go_to_outputs_and_the_store_to_its_folder(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = command("attack=none", "defense=none")
    assert outcome.code == 0
    assert any(name.startswith("outputs/purify/") for name in outcome.written)
    monkeypatch.setenv("FST_LIGHTNING_STORE", "elsewhere")
    outcome = command("attack=none", "defense=none")
    assert any(name.startswith("elsewhere/models/") for name in outcome.written)


def sweep(outcome: Outcome, folder: str = "sweep") -> list[dict[str, str]]:
    with (outcome.folder / folder / "runs.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_sweep_trains_each_backdoored_model_once(command: Command) -> None:
    outcome = command("-m", "seed=0,1", "defense=ft,lp", "hydra.sweep.dir=sweep")
    assert outcome.code == 0
    assert len(list((outcome.folder / "store/models").iterdir())) == 2
    assert [f"#{number}:" in outcome.out for number in range(5)] == [True] * 4 + [False]
    assert {"sweep/table.md", "sweep/table.csv", "sweep/runs.csv"} <= outcome.written
    trained = [results(outcome, f"sweep/{job}")["seconds"]["train"] for job in range(4)]
    assert sum(seconds is not None for seconds in trained) == 2
    assert "4 runs, 2 experiments, 0 failed" in outcome.out


def test_a_failing_job_does_not_stop_the_others(tmp_path: Path) -> None:
    arguments = ["seed=0,1", "defense=ft,lp", "attack.target_label=1,99"]
    plumbing = ["hydra.sweep.dir=sweep", "paths.store=store"]
    done = Started("purify", ["-m", *tiny("purify"), *arguments, *plumbing], tmp_path).wait(120)
    assert done.code == 1
    assert "8 jobs" not in done.err
    assert len(list((tmp_path / "store/models").iterdir())) == 2
    jobs = sorted((tmp_path / "sweep").glob("[0-9]"))
    assert len(jobs) == 8
    kept = [job for job in jobs if (job / "results.json").is_file()]
    failed = [job for job in jobs if (job / "failure.json").is_file()]
    assert len(kept) == len(failed) == 4
    for job in kept:
        validate(json.loads((job / "results.json").read_text(encoding="utf-8")))
    for job in failed:
        failure = json.loads((job / "failure.json").read_text(encoding="utf-8"))
        assert "attack.target_label=99" in failure["overrides"]
        assert "target_label" in failure["error"]
    assert "4 runs, 2 experiments, 4 failed" in done.out
    table = (tmp_path / "sweep/table.md").read_text(encoding="utf-8")
    assert table.count("99") >= 4
    assert (tmp_path / "sweep/table.csv").is_file()
    assert done.err.count("error: ") == 4
    assert "Traceback" not in done.err


def two_processes(folder: Path, *arguments: str) -> Finished:
    """Run the command on two processes of this machine."""
    chosen = [
        "trainer=ddp",
        "trainer.devices=2",
        "trainer.accelerator=cpu",
        "trainer.precision=32-true",
        "data.num_test=31",  # does not divide by two: no row may be counted twice
        "paths.store=store",
    ]
    lines = tiny("purify", chosen)
    done = Started("purify", [*arguments, *lines, *chosen], folder).wait(120)
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    return done


@pytest.mark.ddp
def test_two_processes(tmp_path: Path) -> None:
    done = two_processes(tmp_path, "hydra.run.dir=run")
    found, error = read_results(tmp_path / "run/results.json")
    assert error is None
    assert found is not None
    assert found["environment"]["num_processes"] == 2
    assert done.out.count("purified network") == 1
    assert len(list((tmp_path / "store/models").iterdir())) == 1
    assert not list((tmp_path / "store/work").iterdir())
    assert [file.parent.name for file in tmp_path.rglob("results.json")] == ["run"]
    assert found["before"]["ca"] * 31 == pytest.approx(round(found["before"]["ca"] * 31))


@pytest.mark.parametrize("task", ["train", "purify"])
def test_an_experiment_is_for_both_commands(task: str, command: Command) -> None:
    outcome = command("experiment=cifar10_fst", "data=fake", "hydra.run.dir=run", task=task)
    assert outcome.code == 0, outcome.err
    assert results(outcome)["attack"]["name"] == "blended"
    config = OmegaConf.load(outcome.folder / "run" / "config.yaml")
    assert ("defense" in config, "tuning" in config) == (task == "purify", task == "purify")


@pytest.mark.parametrize(
    "sweep", [("-m", "defense=glob(ft_i*)"), ("hydra.mode=MULTIRUN", "defense=ft,lp")]
)
def test_a_sweep_over_a_group_by_pattern_or_by_mode(
    sweep: tuple[str, ...], command: Command
) -> None:
    outcome = command(*sweep, "hydra.sweep.dir=sw", "attack=badnets")
    assert outcome.code == 0, outcome.err
    found = {
        results(outcome, f"sw/{job.name}")["defense"]["name"]
        for job in (outcome.folder / "sw").glob("[0-9]")
    }
    assert found == (
        {"ft", "lp"} if "-m" not in sweep else set(fnmatch.filter(groups()["defense"], "ft_i*"))
    )


def test_glob_sweeps_over_the_options_of_a_group(command: Command) -> None:
    outcome = command("-m", "defense=glob(ft*)", "hydra.sweep.dir=sweep", "attack=badnets")
    assert outcome.code == 0
    assert "Traceback" not in outcome.err
    folders = sorted((outcome.folder / "sweep").glob("*/results.json"))
    names = {json.loads(file.read_text(encoding="utf-8"))["defense"]["name"] for file in folders}
    assert names == {name for name in groups()["defense"] if fnmatch.fnmatch(name, "ft*")}


def test_an_experiment_trains_or_says_in_one_line_why_not(tmp_path: Path) -> None:
    experiment = ["experiment=cifar10_jpeg_narrow", f"data.root={tmp_path / 'none'}"]
    done = Started("train", experiment, tmp_path).wait()
    assert done.code == 1
    assert "Traceback" not in done.out + done.err
    (error,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert f"folder of images at {tmp_path / 'none'}" in error
    assert "data.root" in error
