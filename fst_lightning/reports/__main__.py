"""Takes the charts out of a report: ``python -m fst_lightning.reports report.html figures``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fst_lightning.reports.html.charts import charts, png
from fst_lightning.reports.results.files import write_text


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: of the command line; None takes the process's own.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m fst_lightning.reports", description=__doc__)
    parser.add_argument("report", type=Path, help="a report.html or leaderboard.html")
    parser.add_argument("folder", type=Path, help="where to write, a file a chart")
    parser.add_argument("--png", action="store_true", help="pictures beside the SVG (resvg-py)")
    options = parser.parse_args(arguments)
    try:
        found = charts(options.report.read_text(encoding="utf-8"))
        for chart in found:
            file = options.folder / f"{chart.name}.svg"
            write_text(file, chart.svg)
            if options.png:
                file.with_suffix(".png").write_bytes(png(chart.svg))
    except (OSError, UnicodeDecodeError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(found)} charts in {options.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
