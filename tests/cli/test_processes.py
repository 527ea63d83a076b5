"""Jobs of a sweep that need several processes: each process joins its job, and no other."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict

from fst_lightning.cli.job import Job
from fst_lightning.cli.launch import launcher_problem, run_apart, starts_processes
from fst_lightning.cli.sweep import SweepTable, run_in_sweep
from fst_lightning.reports import read_results
from tests.cli.conftest import Command
from tests.cli.test_kills import STATUS, Notes, outcome
from tests.cli.test_runs import ROOT
from tests.runs import composed, tiny

TWO = (
    "trainer.devices=2",
    "trainer.strategy=ddp",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "data.num_test=31",  # does not divide by two: no row may be counted twice
    "paths.store=store",
    "hydra.sweep.dir=sweep",
)


def sweep(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a sweep whose jobs have two processes each."""
    lines = tiny("purify", TWO)
    return subprocess.run(
        [sys.executable, ROOT / "purify.py", "-m", *lines, *TWO, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def results(folder: Path) -> dict[str, Any]:
    read, error = read_results(folder / "results.json")
    assert error is None
    assert read is not None
    return read


def run_alone(folder: Path, *arguments: str) -> dict[str, Any]:
    """The same job, not in a sweep: a command of its own."""
    plumbing = [line for line in TWO if not line.startswith("hydra.")]
    lines = [*tiny("purify", TWO), *plumbing, *arguments, "hydra.run.dir=alone"]
    command = [sys.executable, str(ROOT / "purify.py"), *lines]
    subprocess.run(command, cwd=folder, capture_output=True, timeout=120, check=True)
    return results(folder / "alone")


@pytest.mark.ddp
def test_every_process_joins_its_own_job(tmp_path: Path) -> None:
    """Two jobs of two processes: the parameters of the job, one folder, one model each."""
    done = sweep(tmp_path, "defense=ft,lp", "report.enabled=false")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    for number, defense in enumerate(("ft", "lp")):
        found = results(tmp_path / "sweep" / str(number))
        assert found["defense"]["name"] == defense
        assert found["environment"]["num_processes"] == 2
        assert f"defense={defense}" in found["overrides"]
        assert found["before"]["ca"] * 31 == pytest.approx(round(found["before"]["ca"] * 31))
    assert len(list((tmp_path / "store/models").iterdir())) == 1
    assert not list((tmp_path / "store/work").iterdir())
    # Nothing else was written, by none of the four processes.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "sweep"]
    assert sorted(file.parent.name for file in tmp_path.rglob("results.json")) == ["0", "1"]
    assert not list(tmp_path.rglob("job.yaml"))
    for text in ("#0:", "#1:", "2 runs, 2 experiments, 0 failed"):
        assert done.stdout.count(text) == 1


@pytest.mark.slow
@pytest.mark.ddp
def test_a_job_of_a_sweep_is_the_same_run_as_alone(tmp_path: Path) -> None:
    done = sweep(tmp_path, "defense=fst,ft", "seed=3,4", "report.enabled=false")
    assert done.returncode == 0, done.stderr
    alone = run_alone(tmp_path, "defense=ft", "seed=3", "report.enabled=false", "retrain=true")
    found = results(tmp_path / "sweep/2")
    for part in ("before", "after", "attack", "defense", "data", "seed"):
        assert found[part] == alone[part]
    weights = [tmp_path / name / "purified.safetensors" for name in ("sweep/2", "alone")]
    assert weights[0].read_bytes()[-10_000:] == weights[1].read_bytes()[-10_000:]


@pytest.mark.slow
@pytest.mark.ddp
def test_a_failing_job_and_a_dying_rank_do_not_stop_the_others(tmp_path: Path) -> None:
    """The second job fails in all its processes, in the third one rank kills itself."""
    (tmp_path / "assassin.py").write_text(
        "import os, signal\n"
        "from lightning import Callback\n"
        "class Assassin(Callback):\n"
        "    def __init__(self, strikes): self.strikes = strikes\n"
        "    def on_train_start(self, trainer, module):\n"
        "        if self.strikes and trainer.global_rank == 1:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    lines = [
        *tiny("purify", TWO),
        *TWO,
        "+callbacks.assassin._target_=assassin.Assassin",
        "+callbacks.assassin.strikes=false,true",
        "attack.target_label=1,99",
        "report.enabled=false",
    ]
    done = subprocess.run(
        [sys.executable, ROOT / "purify.py", "-m", *lines],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "1 runs, 1 experiments, 3 failed" in done.stdout
    errors = [
        json.loads((tmp_path / f"sweep/{job}/failure.json").read_text())["error"]
        for job in (1, 2, 3)
    ]
    assert "target_label" in errors[0]
    assert "target_label" in errors[2]
    assert not (tmp_path / "sweep/0/failure.json").exists()


def torchrun(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    lines = [line for line in (*tiny("purify", TWO), *TWO) if not line.startswith("hydra.")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [*command, str(ROOT / "purify.py"), *arguments, *lines, "report.enabled=false"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.ddp
def test_torchrun_on_an_empty_store(tmp_path: Path) -> None:
    """The first process says what the store holds; there is one model and one folder."""
    done = torchrun(tmp_path, "defense=ft")
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "outputs/purify").iterdir()
    found = results(run)
    assert found["environment"]["num_processes"] == 2
    assert found["seconds"]["train"] is not None
    assert len(list((tmp_path / "store/models").iterdir())) == 1
    again = torchrun(tmp_path, "defense=ft", "hydra.run.dir=again")
    assert again.returncode == 0, again.stderr
    assert results(tmp_path / "again")["seconds"]["train"] is None
    assert results(tmp_path / "again")["after"] == found["after"]


@pytest.mark.slow
@pytest.mark.ddp
def test_a_sweep_by_torchrun(tmp_path: Path) -> None:
    done = torchrun(tmp_path, "-m", "defense=ft,lp", "hydra.sweep.dir=sweep")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 runs, 2 experiments, 0 failed") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "sweep"]


def test_processes_started_together_need_a_folder(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    outcome = command("-m", "defense=ft,lp")
    assert outcome.code == 1
    assert "hydra.sweep.dir=FOLDER" in outcome.err
    assert not outcome.written


def job(folder: Path, *overrides: str) -> Job:
    folder.mkdir()
    cfg = composed("purify", [*tiny("purify", overrides), *overrides])
    choices = dict(cfg.hydra.runtime.choices)
    cfg = OmegaConf.masked_copy(cfg, [str(name) for name in cfg if name != "hydra"])
    return Job(cfg, choices, list(overrides), folder)


def test_a_job_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    saved = job(tmp_path / "a", "defense=ft", "seed=7", "tuning.max_epochs=3")
    saved.save()
    loaded = Job.load(saved.folder)
    assert loaded.choices["defense"] == "ft"
    assert loaded.overrides == saved.overrides
    assert loaded.cfg.tuning.scheduler.T_max == 3
    assert OmegaConf.to_container(loaded.cfg) == OmegaConf.to_container(saved.cfg, resolve=True)
    assert OmegaConf.is_struct(loaded.cfg)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), False),
        (("trainer.devices=[1]",), False),
        (("trainer.devices=2",), True),
        (("trainer.devices=[0,1]",), True),
        (("trainer.devices=auto",), True),
        (("trainer.devices=-1",), True),
        (("trainer=ddp",), True),
        (("trainer.strategy=ddp",), True),
        (("trainer.num_nodes=2",), True),
    ],
)
def test_which_jobs_start_processes(
    overrides: tuple[str, ...], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    cfg = composed("purify", overrides)
    assert starts_processes(cfg) is expected
    for name in names:
        with monkeypatch.context() as patch:
            patch.setenv(name, "0")
            assert not starts_processes(cfg)


RAY = "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher"
BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


@pytest.mark.parametrize("target", [RAY, BASIC])
@pytest.mark.parametrize("line", ["trainer.devices=1", "trainer.devices=2", "trainer=ddp"])
def test_ray_takes_jobs_of_one_process_alone(
    target: str,
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They are refused as a whole; a job whose number of devices is swept, by itself."""
    cfg = composed("purify", [line])
    with open_dict(cfg):
        cfg.hydra.launcher._target_ = target
        cfg.hydra.job.num = 0
    refused = target == RAY and line != "trainer.devices=1"
    problem = launcher_problem(cfg.hydra.launcher, cfg)
    assert (problem is not None) == refused
    if problem is None:
        return
    assert "Say trainer.devices=1" in problem
    with pytest.raises(SystemExit, match="do not end below Ray"):
        SweepTable().on_multirun_start(cfg)
    tmp_path.joinpath("job").mkdir()
    monkeypatch.setattr("fst_lightning.cli.sweep.run_apart", lambda job: pytest.fail("it started"))
    HydraConfig.instance().set_config(cfg)
    try:
        assert not run_in_sweep(Job(cfg, {}, [line], tmp_path / "job"))
    finally:
        HydraConfig.instance().cfg = None
    assert (
        "hydra/launcher=basic" in json.loads((tmp_path / "job/failure.json").read_text())["error"]
    )
    assert "do not end below Ray" in capsys.readouterr().err


def test_processes_that_die_leave_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dying = job(tmp_path / "a")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    (tmp_path / "python").write_text("#!/bin/sh\nkill -9 $$\n")
    (tmp_path / "python").chmod(0o755)
    assert not run_apart(dying)
    failure = json.loads((dying.folder / "failure.json").read_text())
    assert "signal 9" in failure["error"]
    assert not (dying.folder / "job.yaml").exists()


ONE_RUN = (
    *(line for line in TWO if not line.startswith("hydra.")),
    "training.max_epochs=4",
    "tuning.max_epochs=4",
    "tuning.clean_ratio=0.5",
    "report.enabled=false",
    "hydra.run.dir=run",
    f"+callbacks.notes._target_={Notes.__module__}.Notes",
)


def start_run(folder: Path, *more: str) -> "subprocess.Popen[str]":
    """A run of two processes, in a session of its own: all that it starts is in there."""
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, ROOT / "purify.py", *tiny("purify", ONE_RUN), *ONE_RUN, *more],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, torch.Tensor]]:
    """The figures and the weights of a run that comes to its end at once."""
    folder = tmp_path_factory.mktemp("undisturbed")
    process = start_run(folder)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return outcome("purify", folder)


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.parametrize("moment", ["BackdoorModule 1", "PurificationModule 2"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_to_the_first_process_ends_all(
    number: signal.Signals,
    moment: str,
    tmp_path: Path,
    undisturbed: tuple[Any, dict[str, torch.Tensor]],
) -> None:
    """In the middle of either training; the first process started the other one in the first."""
    process = start_run(tmp_path)
    notes = tmp_path / "epochs"
    while not (notes.is_file() and moment in notes.read_text(encoding="utf-8")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)  # the other one holds the same pipes
    assert process.returncode == STATUS.get(number, -number)
    if number == signal.SIGKILL:
        assert err == ""
    else:
        assert err.count("\n") == 1, err
        assert err.startswith(f"stopped by {number.name}; go on with: python purify.py ")
        assert err.endswith(" resume=true\n")
    assert not (tmp_path / "run" / "failure.json").exists()
    deadline = time.monotonic() + 10
    while _in_session(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _in_session(process.pid) == []

    resumed = start_run(tmp_path, "resume=true")
    out, err = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, err
    assert "continues from" in out
    figures, weights = outcome("purify", tmp_path)
    assert figures == undisturbed[0]
    assert all(torch.equal(weights[name], undisturbed[1][name]) for name in weights)


def _in_session(number: int) -> list[int]:
    """The processes of a session that have not ended."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(session) == number and state != "Z":
                found.append(int(folder.name))
    return found


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    """They would go on training in a folder that a continued sweep uses."""
    child = (
        "import os, time; from fst_lightning.cli.launch import end_with_parent;"
        "end_with_parent(); print(os.getpid(), flush=True); time.sleep(60)"
    )
    parent = (
        "import subprocess, sys; from fst_lightning.cli.launch import leading\n"
        f"with leading(): subprocess.run([sys.executable, '-c', {child!r}])"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    os.kill(pid, 0)  # it is alive
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and not _zombie(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists() or _zombie(pid)
    process.stdout.close()


def _zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
