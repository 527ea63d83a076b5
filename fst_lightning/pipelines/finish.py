"""The beginning and the end of every run: its folder."""

from __future__ import annotations

from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from omegaconf import OmegaConf
from rich.console import Console

from fst_lightning.pipelines.run import Run
from fst_lightning.reports import render_run, write_json


def is_first_process() -> bool:
    """Whether this is the process that writes and prints."""
    return getattr(rank_zero_only, "rank", 0) == 0


def prepare_folder(run: Run) -> None:
    """Make the run's folder and write the resolved configuration into it."""
    if is_first_process():
        run.folder.mkdir(parents=True, exist_ok=True)
        for stale in ("results.json", "failure.json", "traceback.txt"):
            (run.folder / stale).unlink(missing_ok=True)  # of an earlier run in this folder
        text = OmegaConf.to_yaml(run.cfg, resolve=True)
        (run.folder / "config.yaml").write_text(text, encoding="utf-8")


def finish(run: Run, results: dict[str, Any]) -> None:
    """Write ``results.json`` and print the final table."""
    if is_first_process():
        write_json(run.folder / "results.json", results)
        render_run(results, Console(), folder=run.folder)
