"""SIGTERM is not Lightning's: its handler may wait for processes that wait for this one."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

import lightning as L
import pytest

from fst_lightning.pipelines import run_pipeline
from tests.pipelines.conftest import Start

seen: dict[str, Any] = {}


class Look(L.Callback):
    """Notes who handles SIGTERM in the batches of every stage."""

    def on_train_batch_start(self, *args: Any) -> None:
        seen["train"] = signal.getsignal(signal.SIGTERM)

    def on_validation_batch_start(self, *args: Any) -> None:
        seen["validation"] = signal.getsignal(signal.SIGTERM)

    def on_test_batch_start(self, *args: Any) -> None:
        seen["test"] = signal.getsignal(signal.SIGTERM)


def handler(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@pytest.fixture(params=[handler, signal.SIG_IGN, signal.SIG_DFL])
def before(request: pytest.FixtureRequest) -> Iterator[Any]:
    old = signal.signal(signal.SIGTERM, request.param)
    yield request.param
    signal.signal(signal.SIGTERM, old)


def test_who_handled_it_before_does_so_in_every_stage(start: Start, before: Any) -> None:
    seen.clear()
    run_pipeline(start("defense=ft", f"+callbacks.look._target_={__name__}.Look"))
    assert seen == dict.fromkeys(("train", "validation", "test"), before)
    assert signal.getsignal(signal.SIGTERM) == before
