"""Measures the seconds and the peak memory of the stages of a run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from fst_lightning.pipelines.runtime.memory import peak_memory_mb, reset_peak_memory


class Costs:
    """The seconds and the peak memory of each stage of a run.

    Attributes:
        seconds: By stage; the sum if a stage is entered several times.
        peak_memory_mb: By stage, in MiB: of the GPU if one is used, otherwise of the whole process
            with imports and images; the maximum if a stage is entered several times. Empty if the
            system does not count memory.

    Example:
        >>> costs = Costs()
        >>> with costs.of("purify"):
        ...     images = bytes(10**6)
        >>> costs.seconds["purify"] > 0
        True
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peak_memory_mb: dict[str, float] = {}

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """Measure the block, unless it raises."""
        reset_peak_memory()
        started = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started
        if (peak := peak_memory_mb()) is not None:
            self.peak_memory_mb[stage] = max(peak, self.peak_memory_mb.get(stage, 0.0))
