"""Memory that is freed in one step is kept for the next."""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Names of options in glibc's ``malloc.h``."""

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
