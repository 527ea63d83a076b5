"""`trainer.precision=auto` takes what the hardware does natively."""

import warnings
from typing import Any

import lightning as L
import pytest
import torch

from fst_lightning.pipelines import run_pipeline
from fst_lightning.pipelines.build.precision import resolve_precision
from tests.pipelines.conftest import Start


def machine(
    monkeypatch: pytest.MonkeyPatch,
    *,
    cuda: bool = False,
    cuda_bf16: bool = False,
    mps: bool = False,
    avx512_bf16: bool = False,
    capabilities: dict[str, Any] | None = None,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    # Emulation would answer True on any GPU.
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: cuda_bf16 or including_emulation,
    )
    monkeypatch.setattr(torch.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities or {}, raising=False)


@pytest.mark.parametrize(
    ("accelerator", "hardware", "expected"),
    [
        ("auto", {"cuda": True, "cuda_bf16": True}, "bf16-mixed"),
        ("gpu", {"cuda": True, "cuda_bf16": True}, "bf16-mixed"),
        ("cuda", {"cuda": True, "cuda_bf16": True}, "bf16-mixed"),
        ("auto", {"cuda": True}, "32-true"),
        ("gpu", {"cuda": True}, "32-true"),
        ("cpu", {"cuda": True, "cuda_bf16": True}, "32-true"),
        ("auto", {"avx512_bf16": True}, "bf16-mixed"),
        ("cpu", {"avx512_bf16": True}, "bf16-mixed"),
        ("cpu", {"capabilities": {"amx_bf16": True}}, "bf16-mixed"),
        ("cpu", {"capabilities": {"bf16": True}}, "bf16-mixed"),
        ("cpu", {"capabilities": {"avx512_f": True}}, "32-true"),
        ("cpu", {}, "32-true"),
        ("auto", {}, "32-true"),
        ("mps", {"mps": True, "avx512_bf16": True}, "32-true"),
        ("auto", {"mps": True, "avx512_bf16": True}, "32-true"),
    ],
)
def test_auto(
    accelerator: str, hardware: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, **hardware)
    assert resolve_precision("auto", accelerator) == expected


@pytest.mark.parametrize("accelerator", ["cpu", "auto"])
@pytest.mark.parametrize(
    "precision",
    [
        *(64, 32, 16, "64", "32", "16", "bf16"),
        *("64-true", "32-true", "16-true", "16-mixed", "bf16-true", "bf16-mixed"),
    ],
)
def test_what_is_asked_for_has_the_name_of_what_is_used(
    precision: Any, accelerator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, avx512_bf16=True)
    used = L.Trainer(accelerator=accelerator, precision=precision, logger=False).precision
    assert resolve_precision(precision, accelerator) == used


def test_a_gpu_has_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, cuda=True)
    assert resolve_precision(16, "auto") == "16-mixed"
    machine(monkeypatch, mps=True)
    assert resolve_precision("16-mixed", "auto") == resolve_precision(16, "mps") == "16-mixed"


@pytest.mark.parametrize("precision", ["fp32", "bf16mixed", 8, "", "32-false"])
def test_what_does_not_exist_is_refused(precision: str | int) -> None:
    with pytest.raises(ValueError, match=r"`trainer.precision` to be one of auto, .*bf16-mixed"):
        resolve_precision(precision, "cpu")


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_results_say_what_was_used(
    native: bool, expected: str, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, avx512_bf16=native)
    used = []
    autocast = torch.autocast

    class Watched(autocast):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            used.append(kwargs.get("dtype"))
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(torch, "autocast", Watched)
    results = run_pipeline(start("trainer.precision=auto"))
    assert results["environment"]["precision"] == expected
    assert (torch.bfloat16 in used) == native


def test_float16_on_a_cpu_is_said_and_recorded_as_what_it_is(start: Start) -> None:
    kept = set()
    for asked in ("16", "16-mixed", "bf16-mixed"):
        run = start(f"trainer.precision={asked}")
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            results = run_pipeline(run)
        assert results["environment"]["precision"] == "bf16-mixed"
        words = [str(one.message) for one in said if "precision" in str(one.message)]
        expected = f"trainer.precision={asked} is bf16-mixed on a CPU, and is recorded as that."
        assert words == ([] if asked == "bf16-mixed" else [expected])
        kept.add(results["checkpoints"]["backdoored"])
    assert len(kept) == 1  # one model, trained once
