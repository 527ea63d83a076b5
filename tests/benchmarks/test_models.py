"""The table of networks in the docs: what it says of a network holds."""

from pathlib import Path

import pytest
import torchvision

from benchmarks.models import Row, networks, sections, try_network

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
LARGE = ("128gf", "32gf", "vit_h", "vit_l")
"""Parts of names of networks whose steps take more memory than tests should."""


@pytest.mark.parametrize("network", ["torchvision/mobilenet_v3_small", "torchvision/squeezenet1_1"])
def test_a_network_takes_all_three_steps(network: str) -> None:
    row = try_network(network)
    assert (row.train, row.fst, row.ft, row.note) == (True, True, True, "")
    assert row.size == 32


def test_the_page_lists_every_network_of_torchvision() -> None:
    text = PAGE.read_text(encoding="utf-8")
    names = torchvision.models.list_models(module=torchvision.models)
    untold = [name for name in names if f"`{name}`" not in text]
    assert untold == []


def test_what_does_not_work_is_told_below_the_table() -> None:
    rows = [
        Row("torchvision/a", 32, "fc", True, True, True),
        Row("timm/b", 64, None, True, False, True, "More than one layer could be the head."),
    ]
    text = sections({row.network: row for row in rows})
    assert "| `a` | 32 | `fc` | yes | yes | yes |" in text
    assert "| `b` | 64 | none | yes | no | yes |" in text
    assert "- `b`: More than one layer could be the head." in text


@pytest.mark.slow
def test_every_network_trains_and_every_head_is_tuned_by_fst() -> None:
    pytest.importorskip("timm")
    for network in networks():
        if any(part in network for part in LARGE):
            continue
        row = try_network(network)
        assert row.fst == (row.head is not None), row
        assert (row.train and row.ft) or row.note, row
        name = network.partition("/")[2]
        assert f"| `{name}` |" in PAGE.read_text(encoding="utf-8")
