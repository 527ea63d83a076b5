"""A sweep whose parameters Optuna chooses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from fst_lightning import pipelines
from fst_lightning.reports import read_results
from tests.cli.conftest import Command
from tests.cli.test_runs import ROOT
from tests.runs import tiny

optuna = pytest.importorskip("optuna")

from hydra_plugins.fst_lightning_optuna import _consecutive, _distribution  # noqa: E402

SEARCH = (
    "-m",
    "hydra/sweeper=optuna",
    "hydra.sweep.dir=sweep",
    "defense.alpha=tag(log,interval(0.001,1))",
    "tuning.optimizer.lr=0.1,0.01",
    "report.enabled=false",
)


def load(folder: Path) -> Any:
    return optuna.load_study(study_name="purify", storage=f"sqlite:///{folder / 'sweep/study.db'}")


def check(folder: Path, trials: int) -> None:
    """Every trial is complete, and its folder holds the run of its parameters and figures."""
    study = load(folder)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * trials
    for trial in study.trials:
        results, error = read_results(folder / "sweep" / str(trial.number) / "results.json")
        assert error is None
        assert results is not None
        assert trial.values == [results["after"]["ca"], results["after"]["asr"]]
        assert results["defense"]["alpha"] == trial.params["defense.alpha"]
        assert f"tuning.optimizer.lr={trial.params['tuning.optimizer.lr']}" in results["overrides"]
    assert len({trial.params["defense.alpha"] for trial in study.trials}) == trials
    best = json.loads((folder / "sweep/best_trials.json").read_text(encoding="utf-8"))
    for entry in best:  # no other trial is as good in both and better in one
        ca, asr = entry["figures"].values()
        for trial in study.trials:
            assert not (
                trial.values[0] >= ca and trial.values[1] <= asr and trial.values != [ca, asr]
            )


def test_a_study_is_run_and_made_longer(command: Command) -> None:
    """Two figures; one backdoored model; the same command with more trials adds to it."""
    first = command(*SEARCH, "hydra.sweeper.n_trials=2")
    assert first.code == 0, first.err
    check(first.folder, 2)
    assert "study purify: 2 complete" in first.out
    assert "2 runs, 2 experiments, 0 failed" in first.out
    kept = [trial.params for trial in load(first.folder).trials]
    more = command(*SEARCH, "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=2", "resume=true")
    assert more.code == 0, more.err
    check(first.folder, 3)
    assert [trial.params for trial in load(first.folder).trials][:2] == kept
    assert len(list((first.folder / "store/models").iterdir())) == 1
    assert "finished before" not in more.out  # a complete trial isn't even asked for


def test_an_interrupted_trial_is_run_again(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, calls = pipelines.run_pipeline, []

    def interrupted(job: pipelines.Run) -> object:
        calls.append(job)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(job)

    monkeypatch.setattr(pipelines, "run_pipeline", interrupted)
    with pytest.raises(KeyboardInterrupt):
        command(*SEARCH, "hydra.sweeper.n_trials=3")
    monkeypatch.undo()
    here = Path(calls[0].folder).parents[1]
    monkeypatch.chdir(here)
    before = [(trial.state.name, trial.params) for trial in load(here).trials]
    assert [state for state, _ in before] == ["COMPLETE", "RUNNING"]
    again = command(*SEARCH, "hydra.sweeper.n_trials=3", "resume=true")
    assert again.code == 0, again.err
    check(here, 3)
    assert [trial.params for trial in load(here).trials][:2] == [params for _, params in before]


def test_a_failing_trial_does_not_stop_the_others(command: Command) -> None:
    outcome = command(
        *("-m", "hydra/sweeper=optuna", "hydra.sweep.dir=sweep", "report.enabled=false"),
        *("attack.target_label=1,99", "hydra.sweeper.sampler._target_=optuna.samplers.GridSampler"),
        "~hydra.sweeper.sampler.seed",
        "+hydra.sweeper.sampler.search_space={attack.target_label: ['1', '99']}",
        *("hydra.sweeper.n_trials=2", "objective=der", "hydra.sweeper.direction=maximize"),
        "training.max_epochs=4",
    )
    states = {t.params["attack.target_label"]: t.state.name for t in load(outcome.folder).trials}
    assert states["99"] == "FAIL"
    assert outcome.code == 1
    assert "target_label" in outcome.err


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (("hydra.sweeper.n_trials=2",), "nothing to choose"),
        (("seed=0,1", "hydra.sweeper.n_trials=0"), "n_trials"),
        (("seed=0,1", "objective=after.ca"), "hydra.sweeper.direction"),
        (("seed=0,1", "hydra.sweeper.direction=[maximize,down]"), "hydra.sweeper.direction"),
    ],
)
def test_what_does_not_fit(lines: tuple[str, ...], said: str, command: Command) -> None:
    outcome = command("-m", "hydra/sweeper=optuna", "hydra.sweep.dir=sweep", *lines)
    assert outcome.code == 1
    assert said in outcome.err
    assert not list(outcome.folder.rglob("results.json"))


def test_several_processes_would_make_several_studies(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    outcome = command(*SEARCH)
    assert outcome.code == 1
    assert "Start it once" in outcome.err


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a=interval(0,1)", optuna.distributions.FloatDistribution(0, 1)),
        ("a=tag(log,interval(0.1,1))", optuna.distributions.FloatDistribution(0.1, 1, log=True)),
        ("a=int(interval(1,8))", optuna.distributions.IntDistribution(1, 8)),
        ("a=range(5,21,5)", optuna.distributions.IntDistribution(5, 20, step=5)),
        ("a=range(3,0,-1)", optuna.distributions.IntDistribution(1, 3)),
        ("a=range(0,1,0.25)", optuna.distributions.FloatDistribution(0, 0.75, step=0.25)),
        ("a=x,'y z',3", optuna.distributions.CategoricalDistribution(["x", "'y z'", "3"])),
        ("a=[1,2],{b:3}", optuna.distributions.CategoricalDistribution(["[1,2]", "{b:3}"])),
    ],
)
def test_what_is_chosen_from(override: str, expected: object) -> None:
    (parsed,) = OverridesParser.create().parse_overrides([override])
    assert _distribution(parsed) == expected


def test_an_empty_range_is_refused() -> None:
    (parsed,) = OverridesParser.create().parse_overrides(["a=range(1,1)"])
    with pytest.raises(HydraException, match="empty"):
        _distribution(parsed)


def test_numbers_with_a_gap_are_launched_apart() -> None:
    batch = [(number, {"a": number}) for number in (2, 3, 5, 8, 9)]
    parts = [[number for number, _ in part] for part in _consecutive(batch)]
    assert parts == [[2, 3], [5], [8, 9]]


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_study_goes_on(tmp_path: Path, processes: int) -> None:
    """Killed while its second trial runs, in one process or two."""
    chosen = [
        *("trainer.accelerator=cpu", f"trainer.devices={processes}", "trainer.precision=32-true"),
        *(() if processes == 1 else ("trainer.strategy=ddp",)),
        *("paths.store=store", "tuning.max_epochs=30"),
    ]
    lines = [*tiny("purify", chosen), *chosen, *SEARCH[1:], "hydra.sweeper.n_trials=3"]
    command = [sys.executable, str(ROOT / "purify.py"), "-m", *lines]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while (
            not list((tmp_path / "store/work").glob("*/last.ckpt"))
            or not (tmp_path / "sweep/1/config.yaml").exists()
        ):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    before = [(trial.state.name, trial.params) for trial in load(tmp_path).trials]
    assert [state for state, _ in before] == ["COMPLETE", "RUNNING"]
    done = subprocess.run(
        [*command, "resume=true"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "tune: continues from" in done.stdout
    check(tmp_path, 3)
    assert [trial.params for trial in load(tmp_path).trials][:2] == [params for _, params in before]
    for job in range(3):
        results, _ = read_results(tmp_path / f"sweep/{job}/results.json")
        assert results is not None
        assert results["environment"]["num_processes"] == processes
