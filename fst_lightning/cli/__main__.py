"""Runs one job of a sweep: ``python -m fst_lightning.cli FOLDER``.

Started by `run_apart`, and by Lightning for every further device.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fst_lightning.cli.job import Job, exit_failed
from fst_lightning.cli.launch import end_with_parent

if __name__ == "__main__":
    end_with_parent()
    if not Job.load(Path(sys.argv[1])).run():
        exit_failed()
