import os
import subprocess
import sys

import pytest

from fst_lightning.pipelines import memory
from fst_lightning.pipelines.memory import keep_freed_memory

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
