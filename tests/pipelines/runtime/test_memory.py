import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fst_lightning.pipelines.runtime import memory
from fst_lightning.pipelines.runtime.memory import (
    keep_freed_memory,
    peak_memory_mb,
    reset_peak_memory,
)

# 24 MiB are more than glibc's threshold for memory of its own from the system.
PAGES = """
import resource, runpy, sys
import numpy
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        numpy.ones(3 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
if sys.argv[1] == "keep":
    assert runpy.run_path(sys.argv[2])["keep_freed_memory"]()
numpy.ones(3 * 2**20)
print(faults())
"""


def page_faults(mode: str) -> int:
    environment = {name: v for name, v in os.environ.items() if not name.startswith("MALLOC_")}
    environment.pop("GLIBC_TUNABLES", None)
    run = [sys.executable, "-c", PAGES, mode, memory.__file__]
    return int(subprocess.run(run, env=environment, check=True, capture_output=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_not_asked_for_again() -> None:
    if not keep_freed_memory():
        pytest.skip("not glibc, or told otherwise by the environment")
    assert page_faults("keep") < page_faults("leave") / 4


def test_what_the_user_has_set_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000")
    assert not keep_freed_memory()


def test_the_peak_is_what_the_system_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "status").write_text("VmPeak:\t 9 kB\nVmHWM:\t  204800 kB\nVmRSS:\t 1024 kB\n")
    monkeypatch.setattr(memory, "_PROCESS", tmp_path)
    assert peak_memory_mb() == 200
    reset_peak_memory()
    if sys.platform.startswith("linux"):
        assert (tmp_path / "clear_refs").read_text() == "5"


def test_without_proc_the_peak_of_the_whole_process_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(memory, "_PROCESS", tmp_path / "missing")
    resource = pytest.importorskip("resource")
    scale = 2**20 if sys.platform == "darwin" else 2**10
    reset_peak_memory()
    expected = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
    assert peak_memory_mb() == pytest.approx(expected, rel=0.01)


@pytest.mark.gpu
def test_on_a_gpu_what_torch_has_allocated_there_counts() -> None:
    held = torch.cuda.memory_allocated() / 2**20
    large = torch.ones(300 * 2**18, device="cuda")
    del large
    reset_peak_memory()
    small = torch.ones(20 * 2**18, device="cuda")
    assert peak_memory_mb() == pytest.approx(held + 20, abs=2)
    assert small.sum() == small.numel()
