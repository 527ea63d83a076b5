"""What a person sees after a run: results.json, the final table, the table over many runs."""

from fst_lightning.reports.files import Reading, read_json, read_results, write_json, write_text
from fst_lightning.reports.notes import at_chance, notes
from fst_lightning.reports.results import Score, build_results, plain
from fst_lightning.reports.schema import SCHEMA_VERSION, results_schema, validate
from fst_lightning.reports.sweep import (
    Failure,
    Group,
    Run,
    Spread,
    SweepSummary,
    summarise_sweep,
)
from fst_lightning.reports.sweep_files import write_sweep
from fst_lightning.reports.sweep_table import render_sweep
from fst_lightning.reports.table import render_run

__all__ = [
    "SCHEMA_VERSION",
    "Failure",
    "Group",
    "Reading",
    "Run",
    "Score",
    "Spread",
    "SweepSummary",
    "at_chance",
    "build_results",
    "notes",
    "plain",
    "read_json",
    "read_results",
    "render_run",
    "render_sweep",
    "results_schema",
    "summarise_sweep",
    "validate",
    "write_json",
    "write_sweep",
    "write_text",
]
