"""Show results: results.json, tables, charts, HTML pages and leaderboards."""

from fst_lightning.reports.html.leaderboard import (
    leaderboard_page,
    render_leaderboard,
    write_leaderboard,
)
from fst_lightning.reports.html.run_page import render_page, run_page
from fst_lightning.reports.results.build import Score, build_results, plain
from fst_lightning.reports.results.curves import Curves, read_curves
from fst_lightning.reports.results.files import (
    Reading,
    read_json,
    read_results,
    write_json,
    write_text,
)
from fst_lightning.reports.results.notes import at_chance, notes
from fst_lightning.reports.results.schema import SCHEMA_VERSION, results_schema, validate
from fst_lightning.reports.results.sweep import (
    Failure,
    Group,
    Run,
    Spread,
    SweepSummary,
    summarize_sweep,
)
from fst_lightning.reports.results.verdict import Verdict, verdict
from fst_lightning.reports.tables.paper_table import write_paper_table
from fst_lightning.reports.tables.sweep_files import write_sweep
from fst_lightning.reports.terminal.layout import print_line
from fst_lightning.reports.terminal.run_table import render_run
from fst_lightning.reports.terminal.sweep_table import render_sweep

__all__ = [
    "SCHEMA_VERSION",
    "Curves",
    "Failure",
    "Group",
    "Reading",
    "Run",
    "Score",
    "Spread",
    "SweepSummary",
    "Verdict",
    "at_chance",
    "build_results",
    "leaderboard_page",
    "notes",
    "plain",
    "print_line",
    "read_curves",
    "read_json",
    "read_results",
    "render_leaderboard",
    "render_page",
    "render_run",
    "render_sweep",
    "results_schema",
    "run_page",
    "summarize_sweep",
    "validate",
    "verdict",
    "write_json",
    "write_leaderboard",
    "write_paper_table",
    "write_sweep",
    "write_text",
]
