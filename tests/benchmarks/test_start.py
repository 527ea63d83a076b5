"""When the first step begins, as a process tells it."""

import time

import pytest

from benchmarks import start


@pytest.mark.slow
def test_the_first_step_lies_between_start_and_end() -> None:
    begun = time.perf_counter()
    found = start.first_step("data=fake", "data.num_train=64", "data.num_test=16")
    assert 0 < found["first_step_s"] < time.perf_counter() - begun
    assert found["peak_mb"] > start.memory_of_imports() / 2
