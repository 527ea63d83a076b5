"""What holds for every test."""

from __future__ import annotations

import os

# Tiny tensors on many threads cost more than they save, and threads of two test processes on the
# same cores wait for each other. Before torch is imported; inherited by the processes tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
