"""Ends a run that is told to stop: Ctrl-C, ``kill``, a closed terminal."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from fst_lightning.cli.ranks import is_main_process

_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
_received: list[int] = []


@contextmanager
def stoppable(task: str, arguments: Sequence[str]) -> Iterator[None]:
    """Let a signal end what is done inside, say how to go on, and exit with 128 + its number.

    The signal surfaces as a ``KeyboardInterrupt``, so that everything half done is cleaned up on
    the way; the last checkpoint stays.

    Args:
        task: ``train`` or ``purify``.
        arguments: of the command line.

    Raises:
        SystemExit: after a signal, whatever the work has made of it.
    """
    process = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() == process:
            # A second one raises again: the first may have come in a place that can't raise.
            _received.append(number)
            raise KeyboardInterrupt
        # A worker that loads data: its parent ends it, and Ctrl-C reaches it as well.
        if number != signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    _received.clear()
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        # What nohup has made it ignore, or the shell for a job in the background, stays ignored.
        if handler is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    except BaseException:
        if not _received:
            raise
    finally:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN if _received else before[number])
    if _received:
        _say_how_to_go_on(task, arguments)
        code = 128 + _received[0]
        for number, handler in before.items():
            signal.signal(number, handler)
        end_process(code)


def stopped() -> bool:
    """Whether a signal ends this run: what fails then is no failure of the run's own."""
    return bool(_received)


def resuming(task: str, arguments: Sequence[str]) -> str:
    """The command that goes on where this one was.

    Example:
        >>> resuming("train", ["attack=sig", "resume=false"])
        'python train.py attack=sig resume=true'
    """
    kept = [line for line in arguments if line.lstrip("+").partition("=")[0] != "resume"]
    return shlex.join(["python", f"{task}.py", *kept, "resume=true"])


def end_process(code: int) -> NoReturn:
    """Exit; at once where Lightning has started processes for other devices, which don't wait."""
    sys.stdout.flush()
    if "LOCAL_RANK" in os.environ:
        os._exit(code)
    sys.exit(code)


def _say_how_to_go_on(task: str, arguments: Sequence[str]) -> None:
    if is_main_process():
        name = signal.Signals(_received[0]).name
        # A terminal that was closed takes no line.
        with contextlib.suppress(OSError):
            line = f"stopped by {name}; go on with: {resuming(task, arguments)}"
            print(line, file=sys.stderr, flush=True)
