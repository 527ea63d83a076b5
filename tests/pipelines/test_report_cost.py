"""What a report costs in CPU time: ``pytest -m slow -s tests/pipelines/test_report_cost.py``."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from fst_lightning.pipelines import run_pipeline
from fst_lightning.pipelines.measure.evidence import EvidenceCollector
from fst_lightning.pipelines.output import run_folder as finish
from tests.pipelines.conftest import Start

# The data and the network of the default; what a report costs does not depend on the epochs.
DEFAULT = ("data=digits", "model=small_resnet", "attack=blended", "defense=fst", "logger=csv")


@pytest.mark.slow
def test_a_report_of_the_default_run_takes_seconds(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent: Counter[str] = Counter()

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timer(*arguments: Any) -> Any:
            started = time.process_time()
            try:
                return call(*arguments)
            finally:
                spent[name] += time.process_time() - started  # type: ignore[assignment]

        return timer

    monkeypatch.setattr(EvidenceCollector, "look", timed("look, twice", EvidenceCollector.look))
    monkeypatch.setattr(finish, "_write_report", timed("draw and write", finish._write_report))
    run = start(*DEFAULT)
    run_pipeline(run)
    size = (run.folder / "report.html").stat().st_size
    print("\n", ", ".join(f"{name} {seconds:.2f} s" for name, seconds in spent.items()), size)
    assert set(spent) == {"look, twice", "draw and write"}
    assert sum(spent.values()) <= 10
    assert size < 1_000_000
