"""Starts processes, kills some at random moments, and starts those again."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path


def note(log: Path, key: str) -> None:
    """Append that this process begins to make a model."""
    handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, f"{key} {os.getpid()}\n".encode())
    os.close(handle)


def run_with_kills(
    start: Callable[[int], BaseProcess],
    count: int,
    seed: int,
    *,
    kills: int,
    within: float,
    limit: float = 60,
) -> set[int]:
    """Let processes run to their ends; one that was killed is started again.

    Args:
        start: makes the process of a number.
        count: of processes.
        seed: of whom to kill, and when.
        kills: how many.
        within: so many seconds.
        limit: seconds until they hang.

    Returns:
        The process ids of the killed.
    """
    generator = random.Random(seed)
    processes = [start(number) for number in range(count)]
    for process in processes:
        process.start()
    killed: set[int] = set()
    moments = sorted(generator.uniform(0, within) for _ in range(kills))
    begun = time.monotonic()
    for moment in moments:
        time.sleep(max(0.0, begun + moment - time.monotonic()))
        alive = [number for number, process in enumerate(processes) if process.is_alive()]
        if not alive:
            break
        number = generator.choice(alive)
        processes[number].kill()
        processes[number].join()
        if processes[number].exitcode == 0:
            continue  # it was faster
        killed.add(processes[number].pid or 0)
        processes[number] = start(number)
        processes[number].start()
    for process in processes:
        process.join(max(0.1, begun + limit - time.monotonic()))
    hanging = [process for process in processes if process.is_alive()]
    for process in hanging:
        process.kill()
    assert not hanging, f"{len(hanging)} hang"
    assert [process.exitcode for process in processes] == [0] * count
    return killed


def was_made_once(log: Path, key: str, maker: int | None, killed: set[int]) -> None:
    """Whoever began to make it before was killed meanwhile, and the last one's is there.

    Args:
        log: what `note` wrote.
        key: of the model.
        maker: the process whose model is in the store; None if nobody can tell.
        killed: process ids.
    """
    makers = [int(line.split()[1]) for line in log.read_text().splitlines() if key in line]
    assert makers
    assert set(makers[:-1]) <= killed, f"{key} was made by {makers}, of whom {killed} were killed"
    assert maker in (None, makers[-1])
