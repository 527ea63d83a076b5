"""`--help` and `--cfg job` answer at once: they import no torch."""

import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fst_lightning.configuration import groups

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, runpy, sys
task, *sys.argv[1:] = sys.argv[1:]
sys.argv[0] = f"{task}.py"
code = 0
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as stop:
    code = stop.code or 0
heavy = [name for name in ("torch", "lightning", "torchvision", "numpy") if name in sys.modules]
print(json.dumps([code, heavy]), file=sys.stderr)
"""
SECONDS = 2.5


def run(*arguments: str) -> tuple[str, float]:
    """The output of a command that imports nothing heavy, and the processor seconds it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert json.loads(done.stderr) == [0, []]
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("task", ["train", "purify"])
def test_help(task: str) -> None:
    out, seconds = run(task, "--help")
    assert "python purify.py attack=blended defense=fst" in out
    lines = {line.split(":")[0]: line for line in out.splitlines() if ": " in line}
    for group in ("attack", "data", "model", "trainer", "logger"):
        assert all(option in lines[group] for option in groups()[group])
    assert "poison_ratio: 0.05" in out
    meanings = dict(re.findall(r"^ *(\w+):.*?  *# (.+)$", out, re.MULTILINE))
    assert meanings["export" if task == "train" else "checkpoint"].startswith("a ")
    assert meanings["seed"].startswith("of all random numbers")
    assert meanings["corner"] == "top_left | top_right | bottom_left | bottom_right"
    assert (
        meanings["poison_ratio"] == "Share of the training set that is poisoned, 0 to 1."
    )  # its docstring
    assert meanings["crop_fill"].startswith("zeros | reflect")
    assert lines["tuning/optimizer"] == "tuning/optimizer: adam, adamw, rmsprop, sgd"
    assert not any(name.startswith("recipe") for name in lines)
    assert ("tuning:" in out.splitlines()) == (task == "purify")
    parts = yaml.safe_load(out.partition("values ==")[2].partition("Any key can")[0])
    names = {name for part in ("attack", "data", "model") for name in parts[part]}
    names |= {name for name, value in parts.items() if not isinstance(value, dict | list)}
    assert {name for name in names if name not in meanings} <= {"_target_", "task"}
    assert (
        "# A small patch in a corner (Gu et al., 2017).  python train.py attack=badnets\nattack:"
        in out
    )
    assert seconds < SECONDS


def test_help_of_a_scan() -> None:
    out, seconds = run("detect", "--help")
    assert "detector: bti_dbf, head_weights, mm_bd" in out
    meanings = dict(re.findall(r"^ *(\w+):.*?  *# (.+)$", out, re.MULTILINE))
    assert meanings["fail_on"].startswith("p<0.05")
    assert meanings["starts"].lower().startswith("random images per class")
    assert seconds < SECONDS


def test_a_reader_that_has_seen_enough() -> None:
    command = f"{sys.executable} purify.py --help | head -1"
    done = subprocess.run(
        command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith("Trains backdoored image classifiers")
    assert done.stderr == ""


def test_the_configuration_of_a_job(tmp_path: Path) -> None:
    out, seconds = run("purify", "--cfg", "job", "attack=blended", f"hydra.run.dir={tmp_path}/run")
    assert "blend_alpha: 0.2" in out
    assert "alpha: 0.2" in out
    assert seconds < SECONDS
    assert not list(tmp_path.iterdir())


def test_a_mistake(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "purify.py", "defense=fsst"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "error: defense=fsst: no such option. Did you mean fst? "
        f"Valid: {', '.join(groups()['defense'])}."
    ]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [("-m", "seed=0,x"), ("defense.reinit=orthonogal",)])
def test_a_wrong_value_is_found_without_torch(wrong: tuple[str, ...], tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "purify", *wrong],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    (message, heavy) = json.loads(done.stderr)
    assert message.startswith("error: Expected `")
    assert heavy == []
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < SECONDS
