"""The memory of the process: kept from one step to the next, and counted at its peak."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Names of options in glibc's ``malloc.h``."""

_PROCESS = Path("/proc/self")
"""Where Linux tells a process about itself."""

_LARGEST = 32 * 2**20
"""The largest threshold that glibc takes."""


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed, instead of asking the system for it again.

    Activations of tens of megabytes come and go in every step. glibc gives them back to the system,
    which clears every page before it hands it out again. Settings of the user's (``MALLOC_...``),
    and other allocators, are left as they are.

    Returns:
        Whether the allocator took it.
    """
    told = any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ
    if told or not sys.platform.startswith("linux"):
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False  # musl has no such thing.
    kept = set_option(_M_MMAP_THRESHOLD, _LARGEST)
    return bool(kept and set_option(_M_TRIM_THRESHOLD, 2**31 - 1))


def reset_peak_memory() -> None:
    """Let the peak of memory begin anew, from what is held now.

    What the allocator keeps for later goes back to the system first, or whatever ran before in this
    process would count. Where the system knows no new beginning (only Linux does), the peak stays
    that of the whole process.
    """
    for device in _gpus():
        torch.cuda.reset_peak_memory_stats(device)
    if not sys.platform.startswith("linux"):
        return
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):  # a sandbox that lets nobody write there
        (_PROCESS / "clear_refs").write_text("5")


def peak_memory_mb() -> float | None:
    """The most memory since `reset_peak_memory`, in MiB; None where nobody counts it.

    Of a GPU, what torch has allocated there, where it has anything; else what the process has
    resident.
    """
    if allocated := max((torch.cuda.max_memory_allocated(gpu) for gpu in _gpus()), default=0):
        return allocated / 2**20
    try:
        status = (_PROCESS / "status").read_text()
    except OSError:
        return _peak_of_all_time_mb()
    lines = [line.split() for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0][1]) / 2**10 if lines else _peak_of_all_time_mb()


def _gpus() -> range:
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return range(torch.cuda.device_count() if used else 0)


def _peak_of_all_time_mb() -> float | None:
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB elsewhere
