"""Processes that start without the seconds that importing torch takes."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext


def forks() -> ForkServerContext:
    """Return a context whose processes inherit imported modules, and nothing of the test process.

    A server imports what every command imports, once, and forks itself for each process. Python
    keeps one server per test process, and its first user decides what it imports. Therefore all
    tests use this context.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fst_lightning.pipelines"])
    return context
