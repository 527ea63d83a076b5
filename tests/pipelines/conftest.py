"""Tiny runs that share a store."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig

from fst_lightning.data import BackdoorDataModule
from fst_lightning.pipelines import Run, run_pipeline
from fst_lightning.pipelines.build.parts import make_attack, make_source
from tests.runs import make_run

Start = Callable[..., Run]
Results = dict[str, Any]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Makes runs: ``start("defense=ft", task="purify")``, in folders of their own, one store."""
    numbers = itertools.count()

    def begin(*overrides: str, task: str = "purify") -> Run:
        folder = tmp_path / f"run{next(numbers)}"
        return make_run(task, folder, *overrides, store=tmp_path / "store")

    yield begin
    HydraConfig.instance().cfg = None


@pytest.fixture
def start_with_report(start: Start) -> Start:
    """Makes runs, as ``start``, that write their report unless they are told not to."""

    def begin(*overrides: str, task: str = "purify") -> Run:
        asked = any(line.startswith("report.enabled=") for line in overrides)
        return start(*overrides, *(() if asked else ("report.enabled=true",)), task=task)

    return begin


@pytest.fixture
def go(start: Start) -> Callable[..., Results]:
    """Makes a run and goes through with it."""

    def run(*overrides: str, task: str = "purify") -> Results:
        return run_pipeline(start(*overrides, task=task))

    return run


@pytest.fixture
def models(tmp_path: Path) -> Callable[[], set[str]]:
    """The keys in the store."""

    def keys() -> set[str]:
        return {folder.name for folder in (tmp_path / "store" / "models").glob("*")}

    return keys


def defender(run: Run, held_out: float = 0.0) -> BackdoorDataModule:
    """The data of a purification, half of the images clean ones of the defender's."""
    data = BackdoorDataModule(
        make_source(run),
        make_attack(run),
        purpose="purify",
        batch_size=8,
        clean_ratio=0.5,
        held_out=held_out,
    )
    data.setup()
    return data
