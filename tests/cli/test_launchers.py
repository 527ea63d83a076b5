"""Launchers that run several jobs at a time, each in a process of its own."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fst_lightning.reports import read_results
from tests.cli.test_runs import ROOT
from tests.runs import tiny

LAUNCHERS = {
    "joblib": ["hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra.launcher.timeout_min=5"],
    "ray": ["+hydra.launcher.ray.init.num_cpus=2", "+hydra.launcher.ray.remote.num_cpus=1"],
}


def sweep(folder: Path, launcher: str, *lines: str) -> subprocess.CompletedProcess[str]:
    plugin = f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher"
    if importlib.util.find_spec(plugin) is None:
        pytest.skip(f"{plugin} is not installed")
    plumbing = [f"hydra/launcher={launcher}", *LAUNCHERS[launcher], "hydra.sweep.dir=sweep"]
    chosen = ["paths.store=store", "report.enabled=false", *lines]
    return subprocess.run(
        [sys.executable, ROOT / "purify.py", "-m", *tiny("purify", chosen), *chosen, *plumbing],
        cwd=folder,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_jobs_run_side_by_side(launcher: str, tmp_path: Path) -> None:
    """Two come to their ends, with one model; those that fail say why, and stop none."""
    done = sweep(
        tmp_path, launcher, "defense=ft,lp", "tuning.batch_size=8", "attack.target_label=1,99"
    )
    assert done.returncode == 1, done.stderr
    assert "2 runs, 2 experiments, 2 failed" in done.stdout
    for job, defense in ((0, "ft"), (2, "lp")):
        results, error = read_results(tmp_path / f"sweep/{job}/results.json")
        assert error is None
        assert results is not None
        assert results["defense"]["name"] == defense
        failure = json.loads((tmp_path / f"sweep/{job + 1}/failure.json").read_text("utf-8"))
        assert "target_label" in failure["error"]
    assert len(list((tmp_path / "store/models").iterdir())) == 1


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.parametrize("launcher", [name for name in LAUNCHERS if name != "ray"])
def test_every_process_joins_its_own_job(launcher: str, tmp_path: Path) -> None:
    """A worker's own command is no command of ours, so that it could not be run once more."""
    two = ("trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp")
    done = sweep(tmp_path, launcher, "defense=ft,lp", "trainer.precision=32-true", *two)
    assert done.returncode == 0, done.stderr
    assert "2 runs, 2 experiments, 0 failed" in done.stdout
    for job, defense in enumerate(("ft", "lp")):
        results, _ = read_results(tmp_path / f"sweep/{job}/results.json")
        assert results is not None
        assert results["defense"]["name"] == defense
        assert results["environment"]["num_processes"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "sweep"]
