"""What a key means stands beside it: behind it in the YAML, above it, or in a docstring."""

from pathlib import Path

import pytest

from fst_lightning.cli.meanings import with_meanings

YAML = """# The head of the file.
#   python purify.py part=option
_target_: fst_lightning.data.Fake
first: 1  # behind it
# Above it,
# in two lines.
second: "a # b"
third: 3
num_train: 4
group:
  first: 5 # below
"""
SHOWN = """first: 1
second: a
part:
  _target_: fst_lightning.data.Fake
  first: 1
  second: 2
  third: 3
  num_train: 4
  group:
    first: 5
"""


def test_meanings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "option.yaml").write_text(YAML, encoding="utf-8")
    (tmp_path / "train.yaml").write_text("# Head.\nfirst: 1 # at the top\n", encoding="utf-8")
    monkeypatch.setattr("fst_lightning.cli.meanings.conf_folder", lambda: tmp_path)
    text = f"== Keys and their values ==\n{SHOWN}the end\n"
    said = with_meanings(text, "train", {"part": "option", "other": "nope"})
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert lines == [
        "== Keys and their values ==",
        "first: 1 # at the top",
        "second: a",
        "# The head of the file.",
        "part:",
        "_target_: fst_lightning.data.Fake",
        "first: 1 # behind it",
        "second: 2 # Above it, in two lines.",
        "third: 3",
        "num_train: 4 # Number of training images, at least 1.",
        "group:",
        "first: 5 # below",
        "the end",
    ]
