import io
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fst_lightning.reports import render_page
from fst_lightning.reports.__main__ import main
from fst_lightning.reports.html.charts import charts, png, standalone
from fst_lightning.reports.html.pages import figure, section
from fst_lightning.reports.html.style import NIGHT
from fst_lightning.reports.html.svg import heat_map
from tests.reports.example import example
from tests.reports.html.pages import read
from tests.reports.html.test_run_page import CURVES, EVIL, evidence

PAGE = render_page(example(), evidence(), {"purify": CURVES})


def test_every_chart_of_a_page_is_there_once() -> None:
    found = charts(PAGE)
    assert len(found) == len(read(PAGE).named("svg"))
    assert len({chart.name for chart in found}) == len(found)
    assert all(re.fullmatch(r"[a-z0-9-]+", chart.name) for chart in found)
    assert "features-before" in {chart.name for chart in found}


def test_a_chart_needs_no_page() -> None:
    for chart in charts(PAGE):
        tree = ET.fromstring(chart.svg)
        assert tree.tag == "{http://www.w3.org/2000/svg}svg"
        assert "var(" not in chart.svg
        assert not set(NIGHT.values()) & set(re.findall(r"#\w+", chart.svg))
        rules = "".join(tree.find("{http://www.w3.org/2000/svg}style").itertext())  # type: ignore[union-attr]
        for element in tree.iter():
            for name in element.get("class", "").split():
                assert name in ("cell", "name", "label") or f".{name}" in rules


def test_names_are_no_paths() -> None:
    page = section("../up", [figure(heat_map([[1.0]], ["a"], ["b"], title="t"), EVIL)])
    (one, two) = charts(page + page)
    assert re.fullmatch(r"[a-z0-9-]+", one.name)
    assert two.name == f"{one.name}-2"
    assert "chart" in [c.name for c in charts("<h2>猫</h2><svg ></svg>")]


def test_a_picture_has_the_colours_of_the_chart() -> None:
    pytest.importorskip("resvg_py")
    svg = standalone(heat_map([[1.0, 0.0]], ["a"], ["b", "c"], title="t", cell=(40, 40), style=0))
    pixels = np.asarray(Image.open(io.BytesIO(png(svg, 3))).convert("RGB")).astype(int)
    size = [float(ET.fromstring(svg).get(name, "nan")) for name in ("height", "width")]
    assert list(pixels.shape[:2]) == [3 * side for side in size]
    white, blue = np.array([255, 255, 255]), np.array([0x19, 0x3E, 0x73])
    expected = 0.6 * blue + 0.4 * white
    near = np.abs(pixels - expected).max(axis=2) <= 1
    assert near.sum() == pytest.approx(120 * 120, rel=0.05)
    assert (pixels[0, 0] == 255).all()


def test_the_command_writes_a_file_a_chart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report, folder = tmp_path / "report.html", tmp_path / "figures"
    report.write_text(PAGE, encoding="utf-8")
    assert main([str(report), str(folder)]) == 0
    found = charts(PAGE)
    assert {file.stem: file.read_text("utf-8") for file in folder.iterdir()} == {
        chart.name: chart.svg for chart in found
    }
    assert f"{len(found)} charts" in capsys.readouterr().out
    assert main([str(tmp_path / "missing.html"), str(folder)]) == 1
    assert "missing.html" in capsys.readouterr().err
