"""The table over a sweep as a paper prints it: defenses by attacks, in LaTeX."""

import os
from collections.abc import Sequence
from pathlib import Path

from fst_lightning.reports.numbers import percent
from fst_lightning.reports.results.boards import Cells, boards_of
from fst_lightning.reports.results.files import write_text
from fst_lightning.reports.results.sweep import Group, Spread, SweepSummary
from fst_lightning.reports.results.sweep_text import sweep_notes
from fst_lightning.reports.tables.sweep_files import tex

_ABREAST = 3
"""Attacks in one tabular: with a deviation at every figure, more do not fit on a page."""

_RATES = ("ca", "asr")
_NOTHING = "--"


def write_paper_table(summary: SweepSummary, folder: str | os.PathLike[str]) -> Path:
    """Write ``paper.tex``.

    Args:
        summary: the sweep.
        folder: where to write; an older file is replaced.
    """
    path = Path(folder) / "paper.tex"
    write_text(path, paper_table(summary))
    return path


def paper_table(summary: SweepSummary) -> str:
    """Write a line a defense and two columns an attack, with the best of each column in bold.

    CA and ASR are percentages: mean and standard deviation over the seeds. The first line is the
    network without a defense. Three attacks stand side by side; further ones make further tables.
    Whatever else varies makes tables of its own.

    Args:
        summary: the sweep.
    """
    parts = [
        "% \\usepackage{booktabs}",
        "% Percent, mean and standard deviation over the seeds; bold: the best of a column.",
    ]
    for name, cells in boards_of(summary).items():
        attacks = list(dict.fromkeys(attack for attack, _ in cells))
        if name:
            parts.append(f"% {' '.join(name.split())}")
        parts += [
            _tabular(cells, attacks[start : start + _ABREAST])
            for start in range(0, len(attacks), _ABREAST)
        ]
    parts += [f"% {' '.join(note.split())}" for note in sweep_notes(summary)]
    return "\n".join(parts) + "\n"


def _tabular(cells: Cells, attacks: Sequence[str]) -> str:
    """The columns of some attacks."""
    defenses = list(dict.fromkeys(defense for _, defense in cells if defense != "none"))
    width = len(_RATES)
    heads = (f" & \\multicolumn{{{width}}}{{c}}{{{tex(attack)}}}" for attack in attacks)
    rules = (
        f"\\cmidrule(lr){{{2 + i * width}-{1 + (i + 1) * width}}}" for i in range(len(attacks))
    )
    lines = [
        "\\noindent{\\footnotesize\\setlength{\\tabcolsep}{3pt}%",
        f"\\begin{{tabular}}{{l{'r' * width * len(attacks)}}}",
        "\\toprule",
        "".join(heads) + r" \\",
        " ".join(rules),
        " & ".join(["defense", *(rate.upper() for _ in attacks for rate in _RATES)]) + r" \\",
        "\\midrule",
    ]
    columns = [(attack, rate) for attack in attacks for rate in _RATES]
    first = {a: next(group for place, group in cells.items() if place[0] == a) for a in attacks}
    before = [_cell(first[attack].values[f"before.{rate}"]) for attack, rate in columns]
    lines.append(" & ".join(["no defense", *before]) + r" \\")
    groups = {attack: [cells.get((attack, defense)) for defense in defenses] for attack in attacks}
    best = {(attack, rate): _best(groups[attack], rate) for attack, rate in columns}
    for row, defense in enumerate(defenses):
        after = []
        for attack, rate in columns:
            group = groups[attack][row]
            spread = None if group is None else group.values[f"after.{rate}"]
            after.append(_cell(spread, best[attack, rate]))
        lines.append(" & ".join([tex(defense), *after]) + r" \\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}}\\par\\medskip", ""])


def _best(groups: Sequence[Group | None], rate: str) -> str | None:
    """The best figure of a column, as it is printed; None where there is nothing to compare."""
    means = [group.values[f"after.{rate}"].mean for group in groups if group is not None]
    known = [mean for mean in means if mean is not None]
    if len(known) < 2:
        return None
    return percent(max(known) if rate == "ca" else min(known))


def _cell(spread: Spread | None, best: str | None = None) -> str:
    if spread is None or spread.mean is None:
        return _NOTHING
    mean = percent(spread.mean)
    written = f"\\textbf{{{mean}}}" if mean == best else mean
    if spread.std is None:
        return written
    return f"{written}{{\\scriptsize$\\,\\pm\\,${percent(spread.std)}}}"
