import time

import pytest
import torch

from fst_lightning.pipelines.runtime import costs as module
from fst_lightning.pipelines.runtime.costs import Costs


def test_the_seconds_of_a_stage_add_up_and_its_greatest_peak_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peaks, clock = iter([300.0, 500.0, 400.0]), iter([0.0, 2.0, 10.0, 13.0, 20.0, 20.5])
    monkeypatch.setattr(module, "peak_memory_mb", lambda: next(peaks))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    costs = Costs()
    for stage in ("evaluate", "purify", "evaluate"):
        with costs.of(stage):
            pass
    assert costs.seconds == {"evaluate": 2.5, "purify": 3.0}
    assert costs.peak_memory_mb == {"evaluate": 400.0, "purify": 500.0}


def test_memory_that_nobody_counts_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "peak_memory_mb", lambda: None)
    costs = Costs()
    with costs.of("purify"):
        pass
    assert costs.peak_memory_mb == {}
    assert costs.seconds["purify"] >= 0


def test_a_stage_that_fails_costs_nothing() -> None:
    costs = Costs()
    with pytest.raises(RuntimeError, match="no"), costs.of("purify"):
        raise RuntimeError("no")
    assert costs.seconds == {}


def test_a_stage_does_not_pay_for_the_one_before() -> None:
    costs = Costs()
    with costs.of("train"):
        large = torch.ones(100 * 2**18)  # 100 MiB
        del large
    with costs.of("purify"):
        small = torch.ones(10 * 2**18)
    if "purify" not in costs.peak_memory_mb:
        pytest.skip("nobody counts memory here")
    saved = costs.peak_memory_mb["train"] - costs.peak_memory_mb["purify"]
    if saved == 0:
        pytest.skip("the system does not let a peak begin anew")
    assert 70 < saved < 110
    assert small.sum() == small.numel()
