"""Runs one job of a sweep: ``python -m fst_lightning.cli FOLDER``.

Started by `run_apart`, and by Lightning for every further device.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from fst_lightning.cli.job import Job
from fst_lightning.cli.launch import end_with_parent, leading
from fst_lightning.cli.stopping import end_process

if __name__ == "__main__":
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent as well: see above.
    with leading():
        done = Job.load(Path(sys.argv[1])).run()
    if not done:
        end_process(1)
