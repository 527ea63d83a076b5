"""The table for a paper: defenses by attacks, the best of a column in bold."""

import shutil
import subprocess
from pathlib import Path

import pytest

from fst_lightning.reports import summarize_sweep, write_json, write_paper_table, write_sweep
from fst_lightning.reports.tables.paper_table import paper_table
from tests.reports.example import example, score

RATES = {
    ("badnets", "none"): (918, 938),
    ("badnets", "ft"): (910, 300),
    ("badnets", "fst"): (905, 10),
    ("badnets", "i_bau"): (910, 10),
    ("badnets", "nc_&_more"): (800, 400),
    ("blended", "ft"): (902, 500),
    ("blended", "fst"): (901, 20),
}
MORE = {("sig", "fst"): (900, 30), ("low_frequency", "fst"): (900, 1000)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, RATES)
    return tmp_path


def write(folder: Path, rates: dict[tuple[str, str], tuple[int, int]]) -> None:
    for job, ((attack, defense), (right, attacked)) in enumerate(rates.items()):
        for seed in (0, 1):
            results = example(
                seed=seed,
                attack={"name": attack},
                defense={"name": defense},
                after=score(right + 2 * seed, attacked, 0),
            )
            write_json(folder / f"{job}-{seed}" / "results.json", results)


def test_the_best_of_a_column_is_bold(folder: Path) -> None:
    text = paper_table(summarize_sweep(folder))
    rows = [line.removesuffix(r" \\").split(" & ") for line in text.splitlines() if " & " in line]
    deviation = r"{\scriptsize$\,\pm\,$0.14}"
    none = r"{\scriptsize$\,\pm\,$0.00}"
    assert [cell.strip() for cell in rows[0]] == [
        "",
        r"\multicolumn{2}{c}{badnets}",
        r"\multicolumn{2}{c}{blended}",
    ]
    assert rows[1:] == [
        ["defense", "CA", "ASR", "CA", "ASR"],
        ["no defense", f"91.80{none}", f"93.80{none}", f"91.80{none}", f"93.80{none}"],
        [
            *("ft", rf"\textbf{{91.10}}{deviation}", f"30.00{none}"),
            *(rf"\textbf{{90.30}}{deviation}", f"50.00{none}"),
        ],
        [
            *("fst", f"90.60{deviation}", rf"\textbf{{1.00}}{none}"),
            *(f"90.20{deviation}", rf"\textbf{{2.00}}{none}"),
        ],
        [r"i\_bau", rf"\textbf{{91.10}}{deviation}", rf"\textbf{{1.00}}{none}", "--", "--"],
        [r"nc\_\&\_more", f"80.10{deviation}", f"40.00{none}", "--", "--"],
    ]


def test_a_defense_alone_is_not_the_best(tmp_path: Path) -> None:
    write_json(tmp_path / "0" / "results.json", example())
    text = paper_table(summarize_sweep(tmp_path))
    assert "textbf" not in text
    assert r"no defense & 91.80 & 93.80 \\" in text
    assert r"fst & 92.20 & 1.60 \\" in text


def test_an_empty_sweep_has_no_table(tmp_path: Path) -> None:
    assert r"\begin" not in paper_table(summarize_sweep(tmp_path))


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_the_tables_compile_and_fit_a_page(tmp_path: Path) -> None:
    folder = tmp_path
    write(folder, RATES | MORE)
    table = write_paper_table(summarize_sweep(folder), folder)
    write_sweep(summarize_sweep(folder), folder)
    page = (
        r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}\noindent "
        rf"\input{{{table.name}}}\noindent\input{{table.tex}}\end{{document}}"
    )
    (folder / "page.tex").write_text(page, encoding="utf-8")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "page.tex"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "Overfull" not in done.stdout
    # A fourth attack stands in a table below.
    assert table.read_text(encoding="utf-8").count(r"\begin{tabular}") == 2
