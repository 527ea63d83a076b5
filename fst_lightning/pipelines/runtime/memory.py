"""Keeps freed memory for the next step, and measures the peak memory of the process."""

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
"""The folder in which Linux describes a process to itself."""

_LARGEST = 32 * 2**20
"""The largest threshold that glibc accepts."""


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory instead of returning it to the system.

    Each step allocates and frees activations of tens of megabytes. By default, glibc returns them
    to the system, which clears every page before it hands it out again. Settings of the user
    (``MALLOC_...``) and other allocators are left as they are.

    Returns:
        Whether the allocator accepted the setting.
    """
    told = any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ
    if told or not sys.platform.startswith("linux"):
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False  # musl has no such function.
    kept = set_option(_M_MMAP_THRESHOLD, _LARGEST)
    return bool(kept and set_option(_M_TRIM_THRESHOLD, 2**31 - 1))


def reset_peak_memory() -> None:
    """Restart the measurement of peak memory.

    Memory that the allocator keeps for later is returned to the system first, because otherwise
    earlier work of this process would count. Only Linux can restart the measurement; on other
    systems the peak is that of the whole process.
    """
    for device in _gpus():
        torch.cuda.reset_peak_memory_stats(device)
    if not sys.platform.startswith("linux"):
        return
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):  # a sandbox that forbids writing there
        (_PROCESS / "clear_refs").write_text("5")


def peak_memory_mb() -> float | None:
    """The peak memory since `reset_peak_memory`, in MiB; None if the system does not count it.

    On a GPU it is the memory that torch has allocated there, otherwise the resident memory of the
    process.
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
