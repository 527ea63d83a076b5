"""Prepares the folder of a run, and writes the results and the report into it."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from rich.console import Console

from fst_lightning.commit import code_commit
from fst_lightning.pipelines.build.run import Run
from fst_lightning.pipelines.output.loggers import log_report
from fst_lightning.pipelines.runtime.processes import is_first_process
from fst_lightning.reports import print_line, read_curves, render_run, run_page, write_json
from fst_lightning.reports.html.page import Page
from fst_lightning.reports.results.evidence import check_projection
from fst_lightning.reports.results.files import write_text
from fst_lightning.reports.results.notes import shortfalls
from fst_lightning.reports.results.robustness import robustness_lines

if TYPE_CHECKING:
    from fst_lightning.pipelines.measure.evidence import EvidenceCollector


def prepare_folder(run: Run) -> None:
    """Make the run's folder and write the resolved configuration into it.

    Raises:
        ValueError: If the settings of the report are invalid.
    """
    if run.cfg.get("report"):
        check_projection(run.cfg.report.projection)
    if is_first_process():
        code_commit()  # Now, because the files may be edited during the run.
        run.folder.mkdir(parents=True, exist_ok=True)
        # Files of an earlier run in this folder.
        files = "results.json", "failure.json", "traceback.txt", "report.html", "charts.pdf"
        pictures = (run.folder / "charts").glob("*.png")
        for stale in (*(run.folder / name for name in files), *pictures):
            stale.unlink(missing_ok=True)
        text = OmegaConf.to_yaml(run.cfg, resolve=True)
        write_text(run.folder / "config.yaml", text)


def finish(run: Run, results: dict[str, Any], collector: EvidenceCollector | None = None) -> None:
    """Write ``results.json``, print the final table and write the report.

    Args:
        run: The run.
        results: The content of ``results.json``.
        collector: What has looked at the networks, for the report; None for a run without one.
    """
    if not is_first_process():
        return
    write_json(run.folder / "results.json", results)
    console = Console()
    page, trouble = None, None
    if collector is not None and collector.wanted:
        page, trouble = _write_report(run, results, collector)
    troubles = [trouble] if trouble else []
    if collector is not None:
        troubles += log_report(collector.trainer, results, page, run.folder)
    written = [] if page is None else [run.folder / "report.html"]
    render_run(results, console, written, folder=run.folder)
    for line in robustness_lines(results):
        print_line(console, line)
    for line in troubles:
        print_line(console, f"warning  {line}", style="yellow")
    for each in shortfalls(results):
        print_line(console, f"no success: {each['what']}", style="yellow")


def _write_report(
    run: Run, results: dict[str, Any], collector: EvidenceCollector
) -> tuple[Page | None, str | None]:
    """Write ``report.html`` and its charts. The results stand, whatever happens here.

    Returns:
        The page, or None if it was not written, and what went wrong, or None.
    """
    try:
        curves = {
            stage: read_curves(run.folder / "curves" / stage / "metrics.csv")
            for stage in ("train", "purify")
            if results["seconds"][stage]  # otherwise they belong to an earlier run
        }
        command = f"python {results['task']}.py {shlex.join(run.overrides)}".rstrip()
        page = run_page(results, collector.evidence(), curves, command)
        page.write(run.folder / "report.html")
    except Exception as error:
        return None, f"report.html was not written: {type(error).__name__}: {error}"
    if collector.trouble:
        return page, f"report.html lacks its pictures: {collector.trouble}"
    return page, None
