"""What holds for every test."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# Tiny tensors on many threads cost more than they save, and threads of two test processes on the
# same cores wait for each other. Before torch is imported; inherited by the processes tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def no_seed_is_left() -> Iterator[None]:
    """What ``seed_everything`` leaves in the environment would seed processes of later tests."""
    yield
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        os.environ.pop(name, None)
