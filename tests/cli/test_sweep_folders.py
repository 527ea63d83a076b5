"""Every job of a sweep has its own folder, and a resumed sweep finds it again."""

import json

import pytest

from tests.cli.conftest import Command

SMALL = ("data=fake", "data.num_train=32", "data.num_test=16", "training.max_epochs=1")
BY_NAME = "hydra.sweep.subdir=${hydra.job.override_dirname}"


@pytest.mark.parametrize(
    ("subdir", "jobs"),
    [
        ("same", "jobs 0 and 1"),
        ("seed${seed}", "jobs 0 and 2"),
        ("${defense.project_norm}/run", "jobs 0 and 1"),
        ("./a/../same", "jobs 0 and 1"),
    ],
)
def test_jobs_that_share_a_folder_are_refused_before_work(
    subdir: str, jobs: str, command: Command
) -> None:
    outcome = command(
        "-m",
        "defense=fst",
        "defense.project_norm=true,false",
        "seed=0,1",
        f"hydra.sweep.subdir={subdir}",
    )
    assert outcome.code == 1
    assert outcome.err.startswith(f"error: hydra.sweep.subdir={subdir}: {jobs} would both write")
    assert "hydra.job.num" in outcome.err
    assert f" {outcome.folder}/multirun/purify/" in outcome.err
    assert not outcome.written


def test_optuna_may_try_the_same_parameters_twice(command: Command) -> None:
    outcome = command(
        "-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "defense=ft,lp", BY_NAME
    )
    assert outcome.code == 1
    assert "jobs 0 and 1 would both write" in outcome.err


def test_a_resumed_sweep_of_named_folders_counts_a_job_once(command: Command) -> None:
    short = "hydra.job.config.override_dirname.kv_sep=-"
    sweep = ("-m", "defense=none", "seed=0,1", "hydra.sweep.dir=sw", BY_NAME, short, *SMALL)
    first = command(*sweep, small=False)
    assert first.code == 0
    folder = first.folder / "sw"
    (group,) = json.loads((folder / "table.json").read_text(encoding="utf-8"))["groups"]
    assert (group["n"], group["seeds"]) == (2, [0, 1])
    folders = {path.parent for path in folder.rglob("results.json")}
    again = command(*sweep, "resume=true", small=False)
    assert again.code == 0
    assert again.out.count("finished before") == 2
    assert {path.parent for path in folder.rglob("results.json")} == folders
    (group,) = json.loads((folder / "table.json").read_text(encoding="utf-8"))["groups"]
    assert group["n"] == 2


@pytest.mark.parametrize(
    "more",
    [
        (BY_NAME, "hydra.job.config.override_dirname.exclude_keys=[defense]"),
        ("hydra.sweep.subdir=${seed}-${resume}",),
    ],
)
def test_a_folder_that_depends_on_resume_is_refused(
    more: tuple[str, ...], command: Command
) -> None:
    outcome = command("-m", "defense=ft", "seed=0,1", "resume=true", *more)
    assert outcome.code == 1
    assert "depends on resume or debug" in outcome.err
    assert "exclude_keys=[resume,debug" in outcome.err
    assert not outcome.written
