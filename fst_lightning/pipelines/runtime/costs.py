"""What the stages of a run cost: seconds, and memory at its peak."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from fst_lightning.pipelines.runtime.memory import peak_memory_mb, reset_peak_memory


class Costs:
    """Seconds and peak memory of the stages of a run, each measured by itself.

    Attributes:
        seconds: By stage; the sum, where a stage was entered several times.
        peak_memory_mb: By stage, MiB: of the whole process, imports and images included, or of the
            GPU, where one was used; the greatest, where a stage was entered several times. Stages
            whose memory nobody counts are left out.

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
        """Measure what is done inside, unless it fails."""
        reset_peak_memory()
        started = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started
        if (peak := peak_memory_mb()) is not None:
            self.peak_memory_mb[stage] = max(peak, self.peak_memory_mb.get(stage, 0.0))
