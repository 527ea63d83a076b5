"""Who started this process."""

from __future__ import annotations

import os


def is_main_process() -> bool:
    """Whether Lightning did not start this process for another device, by the same command.

    Known without torch and before any process group: Lightning tells its children by ``LOCAL_RANK``
    (and sets it to 0 for itself).
    """
    return os.environ.get("LOCAL_RANK", "0") == "0"
