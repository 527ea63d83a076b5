"""The beginning and the end of every run: its folder."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from rich.console import Console

from fst_lightning.pipelines.build.run import Run
from fst_lightning.pipelines.output.loggers import log_report
from fst_lightning.pipelines.runtime.processes import is_first_process
from fst_lightning.reports import print_line, read_curves, render_page, render_run, write_json
from fst_lightning.reports.html.robustness import write_connectivity
from fst_lightning.reports.results.evidence import check_projection
from fst_lightning.reports.results.files import write_text
from fst_lightning.reports.results.notes import shortfalls
from fst_lightning.reports.results.robustness import robustness_lines

if TYPE_CHECKING:
    from fst_lightning.pipelines.measure.evidence import EvidenceCollector


def prepare_folder(run: Run) -> None:
    """Make the run's folder and write the resolved configuration into it.

    Raises:
        ValueError: If no report could be made as the configuration wants it.
    """
    if run.cfg.get("report"):
        check_projection(run.cfg.report.projection)
    if is_first_process():
        run.folder.mkdir(parents=True, exist_ok=True)
        # Of an earlier run in this folder.
        files = "results.json", "failure.json", "traceback.txt", "report.html", "connectivity.svg"
        for stale in files:
            (run.folder / stale).unlink(missing_ok=True)
        text = OmegaConf.to_yaml(run.cfg, resolve=True)
        write_text(run.folder / "config.yaml", text)


def finish(run: Run, results: dict[str, Any], collector: EvidenceCollector | None = None) -> None:
    """Write ``results.json``, print the final table and write the report.

    Args:
        run: Its configuration.
        results: What ``results.json`` holds.
        collector: What has looked at the networks, for the report; None for a run without one.
    """
    if not is_first_process():
        return
    found = None if collector is None else collector.inversion()
    if found is not None:
        results["inversion"] = found
    write_json(run.folder / "results.json", results)
    console = Console()
    report, trouble = None, None
    if collector is not None and collector.wanted:
        report, trouble = _write_report(run, results, collector)
    troubles = [trouble] if trouble else []
    if collector is not None:
        troubles += log_report(collector.trainer, results, run.folder / "report.html")
    written = [*([report] if report else []), *write_connectivity(run.folder, results)]
    render_run(results, console, written, folder=run.folder)
    for line in robustness_lines(results):
        print_line(console, line)
    for line in troubles:
        print_line(console, f"warning  {line}", style="yellow")
    for each in shortfalls(results):
        print_line(console, f"no success: {each['what']}", style="yellow")


def _write_report(
    run: Run, results: dict[str, Any], collector: EvidenceCollector
) -> tuple[Path | None, str | None]:
    """Write ``report.html``. The results stand, whatever happens here.

    Returns:
        The file, where there is one, and what went wrong, where something did.
    """
    path = run.folder / "report.html"
    try:
        curves = {
            stage: read_curves(run.folder / "curves" / stage / "metrics.csv")
            for stage in ("train", "purify")
            if results["seconds"][stage]  # else they are of an earlier run in this folder
        }
        command = f"python {results['task']}.py {shlex.join(run.overrides)}".rstrip()
        write_text(path, render_page(results, collector.evidence(), curves, command))
    except Exception as error:
        return None, f"report.html was not written: {type(error).__name__}: {error}"
    if collector.trouble:
        return path, f"report.html lacks its pictures: {collector.trouble}"
    return path, None
