"""The pages of real runs in a real browser."""

from pathlib import Path

import pytest

from fst_lightning.pipelines import run_pipeline
from fst_lightning.reports import summarize_sweep, write_leaderboard
from tests.browser import browser, find_chromium
from tests.pipelines.conftest import Start
from tests.reports.html.test_browser import CHARTS, CROWDED, OVERFLOW

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium on the PATH"),
]


def test_both_reports_open_without_error_or_request(start: Start, tmp_path: Path) -> None:
    pages: list[tuple[Path, int]] = []
    for defense in ("fst", "ft", "none"):
        run = start("attack=badnets", "attack.poison_ratio=0.3", f"defense={defense}", "logger=csv")
        run_pipeline(run)
        pages.append((run.folder / "report.html", 5))
    unknown = start(
        "attack=none", "detector=[mm_bd,nc]", "data.num_classes=4", "report.projection=tsne"
    )
    run_pipeline(unknown)
    pages.append((unknown.folder / "report.html", 5))
    pages.append((write_leaderboard(summarize_sweep(tmp_path), tmp_path), 4))
    with browser() as opened:
        for page, charts in pages:
            for width in (1100, 390):
                visit = opened.visit(page, width, evaluate=(OVERFLOW, CROWDED, CHARTS))
                assert visit.complaints == []
                assert visit.requests == []
                overflow, crowded, count = visit.results
                assert overflow <= 0
                assert crowded == []
                assert count >= charts
