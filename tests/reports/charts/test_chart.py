"""A chart in a page has the page's colors and text; as a file it needs nothing else."""

import io
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from fst_lightning.reports.charts.chart import Chart, write_pdf
from fst_lightning.reports.charts.palette import DAY, SHADE
from fst_lightning.reports.charts.plots import Series, heat_map, line_chart


def chart() -> Chart:
    series = [Series("clean", [0.0, 1.0]), Series("#193e73 <g>", [1.0, 0.5], style=1)]
    return line_chart(series, title="two lines", x_label="epoch", y_label="%")


def test_a_page_gets_variables_and_its_own_font() -> None:
    svg = chart().svg()
    assert set(re.findall(r"var\(--(\w+)\)", svg)) <= set(DAY)
    tags = re.findall(r"<[^<>]*>", svg)
    assert not re.findall(r"#[0-9a-f]{6}\b", "".join(tags))
    for word in ("font-family", "url(", "<style", "<metadata", "http", "target=", "<?xml"):
        assert word not in "".join(tags)
    assert "#193e73 &lt;g&gt;" in svg  # a name that looks like a color stays a name


def test_every_color_has_one_name() -> None:
    assert len(set(DAY.values())) == len(DAY)
    assert all(re.fullmatch("#[0-9a-f]{6}", color) for color in DAY.values())


def test_the_same_chart_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (chart().write(tmp_path / name, "lines") for name in "ab")
    assert [path.suffix for path in first] == [".svg", ".pdf", ".png"]
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes()
    assert chart().svg() == chart().svg()


def test_a_user_s_settings_of_matplotlib_change_nothing() -> None:
    expected = chart().svg()
    with mpl.rc_context({"text.usetex": True, "axes.facecolor": "red", "lines.linewidth": 9}):
        assert chart().svg() == expected
        assert mpl.rcParams["lines.linewidth"] == 9


def test_a_file_needs_no_page(tmp_path: Path) -> None:
    svg, pdf, _ = chart().write(tmp_path, "lines")
    tree = ET.fromstring(svg.read_text("utf-8"))
    assert tree.tag == "{http://www.w3.org/2000/svg}svg"
    assert "var(" not in svg.read_text("utf-8")
    assert b"/CreationDate" not in pdf.read_bytes()
    assert b"/Type3" not in pdf.read_bytes()  # which publishers refuse


def test_charts_share_a_pdf(tmp_path: Path) -> None:
    write_pdf([chart(), chart()], tmp_path / "charts.pdf")
    content = (tmp_path / "charts.pdf").read_bytes()
    assert len(re.findall(rb"/Type /Page\b", content)) == 2
    assert len(re.findall(rb"/FontFile2", content)) == 1


def test_a_picture_has_the_colors_of_the_chart() -> None:
    drawn = heat_map([[1.0, 0.0]], ["a"], ["b", "c"], title="t", cell=(40, 40), style=0)
    pixels = np.asarray(Image.open(io.BytesIO(drawn.png())).convert("RGB")).astype(int)
    width, height = (144 * side for side in drawn.figure.get_size_inches())
    assert pixels.shape[:2] == pytest.approx((height, width), abs=1)
    expected = SHADE * np.array([0x19, 0x3E, 0x74]) + (1 - SHADE) * 255
    near = np.abs(pixels - expected).max(axis=2) <= 1
    assert near.sum() == pytest.approx(80 * 80, rel=0.05)
    assert (pixels[0, 0] == 255).all()


def test_the_package_is_imported_without_matplotlib_and_jinja() -> None:
    code = (
        "import sys, fst_lightning.reports\n"
        "print([name for name in ('matplotlib', 'jinja2', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
