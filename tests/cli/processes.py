"""Commands in processes of their own, without the seconds that importing torch takes each time."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

from fst_lightning import cli
from tests.forks import forks

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Finished:
    """What a process left.

    Attributes:
        code: exit status; minus the signal for one that was killed, None for one that went on.
        out: what it printed.
        err: what it complained of.
    """

    code: int | None
    out: str
    err: str


class Started:
    """A command that runs: ``Started("purify", ["defense=ft"], folder)``."""

    def __init__(self, task: str, arguments: list[str], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        for name in ("out", "err"):  # A kill may come before the process has made them.
            (folder / name).touch()
        self.process = forks().Process(target=_command, args=(task, arguments, str(folder)))
        self.process.start()

    def tell(self, number: int) -> None:
        """Send it a signal."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def wait(self, timeout: float = 60.0) -> Finished:
        """Let it end; one that does not is killed."""
        self.process.join(timeout)
        code = self.process.exitcode
        if code is None:
            self.process.kill()
            self.process.join()
        out, err = ((self.folder / name).read_text("utf-8", "replace") for name in ("out", "err"))
        return Finished(code, out, err)


def _command(task: str, arguments: list[str], folder: str) -> None:
    os.chdir(folder)
    for name, stream in (("out", 1), ("err", 2)):
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
    sys.argv = [str(ROOT / f"{task}.py"), *arguments]
    os.environ.pop("FST_LIGHTNING_STORE", None)
    # Tests that run in the background have inherited that these are ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    code: object = 0
    try:
        getattr(cli, task)()
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
        code = 70
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
