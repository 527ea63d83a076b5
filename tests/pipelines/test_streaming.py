"""Images that are decoded whenever they are needed give the same figures as those in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fst_lightning.data.images import TooLargeError
from fst_lightning.pipelines import run_pipeline
from tests import tiny
from tests.runs import make_run

Go = Callable[..., dict[str, Any]]
FIGURES = ("before", "after", "data", "ci95", "shift", "robustness")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 24 images to train on and 10 to test, of several sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    for part, count in (("train", 24), ("test", 10)):
        for label in range(3):
            (folder / part / str(label)).mkdir(parents=True)
            for row, image in enumerate(tiny.images(count, 9 + label, seed=100 * label + count)):
                pixels = Image.fromarray(image.permute(1, 2, 0).numpy())
                pixels.save(folder / part / str(label) / f"{row}.png")
    return folder


def lines(root: Path, *more: str) -> list[str]:
    return ["data=image_folder", f"data.root={root}", "data.image_size=8", *more]


@pytest.mark.parametrize(
    "more",
    [
        ("attack=badnets", "defense=fst", "robustness=[retuning]"),
        ("attack=blended", "defense=nad", "defense.teacher_epochs=1", "num_workers=2"),
        ("attack=wanet", "defense=anp", "num_workers=0", "tuning.clean_source=heldout"),
        ("attack=adaptive_patch", "attack.poison_ratio=0.1", "defense=ac", "num_workers=0"),
        ("attack=input_aware", "attack.mask_epochs=1", "defense=none", "num_workers=0"),
    ],
    ids=lambda more: " ".join(more[:1]),
)
def test_the_same_figures_streamed_cached_and_in_memory(
    more: tuple[str, ...], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fst_lightning.data.residency.MIN_FILES", 20)
    found, weights = [], []
    for held, cache in (("memory", "off"), ("file", "auto"), ("nowhere", "stream")):
        store = tmp_path / f"store {held}"
        run = make_run(
            "purify", tmp_path / held, *lines(root, *more, f"data.cache={cache}"), store=store
        )
        results = run_pipeline(run)
        assert bool(list(store.glob("images/*.images"))) == (held == "file")
        # What a model is kept by does not depend on where its images were.
        found.append(
            {name: results.get(name) for name in FIGURES}
            | {"key": Path(results["checkpoints"]["backdoored"]).parent.name}
        )
        weights.append([load_file(path) for path in results["checkpoints"].values()])
    assert found[0] == found[1] == found[2]
    for other in weights[1:]:
        for one, two in zip(weights[0], other, strict=True):
            assert one.keys() == two.keys()
            assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_training_measures_on_streamed_images(root: Path, go: Go) -> None:
    in_memory = go(*lines(root, "data.cache=off", "attack=sig"), task="train")
    streamed = go(*lines(root, "data.cache=stream", "attack=sig"), task="train")
    assert streamed["before"] == in_memory["before"]
    assert streamed["checkpoints"] == in_memory["checkpoints"]  # the store had it


def test_what_has_no_room_is_streamed_unasked(
    root: Path, go: Go, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fst_lightning.data.images.MAX_BYTES", 40 * 3 * 8 * 8)
    results = go(*lines(root, "attack=badnets", "defense=fst"))
    assert results["after"]["ca"] is not None
    said = [line for line in capsys.readouterr().out.splitlines() if "are streamed" in line]
    assert len(said) == 1
    assert "102 images of 8x8 pixels" in said[0]


@pytest.mark.parametrize(
    ("task", "more", "message"),
    [
        ("purify", ("defense=ac",), "defense=ac needs images in memory, but 72 images"),
        ("purify", ("robustness=[retuning]",), "robustness=retuning needs .* 72 images"),
        ("purify", ("tuning.clean_ratio=1",), "tuning.clean_ratio=1.0 needs .* 72 images"),
        (
            "purify",
            ("attack=ssba", "attack.poison_ratio=0.9"),
            "SSBA needs images in memory, but 65 images",
        ),
        ("train", ("export=poisoned",), "export=poisoned needs .* 72 images"),
    ],
    ids=str,
)
def test_what_needs_all_images_is_refused_before_the_work(
    task: str,
    more: tuple[str, ...],
    message: str,
    root: Path,
    go: Go,
    models: Callable[[], set[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fst_lightning.data.images.MAX_BYTES", 40 * 3 * 8 * 8)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TooLargeError, match=message):
        go(*lines(root, *more), task=task)
    assert not models()
    assert not (tmp_path / "poisoned").exists()


def test_an_export_of_streamed_images(root: Path, go: Go, tmp_path: Path) -> None:
    for cache in ("off", "stream"):
        more = (f"data.cache={cache}", f"export={tmp_path / cache}", "attack=blended")
        go(*lines(root, *more), task="train")
    names = {path.relative_to(tmp_path / "off") for path in (tmp_path / "off").rglob("*.*")}
    assert len(names) == 72 + 30 + 20 + 1
    for name in names:
        assert (tmp_path / "off" / name).read_bytes() == (tmp_path / "stream" / name).read_bytes()


def test_triggered_images_of_somebody_else(root: Path, go: Go, tmp_path: Path) -> None:
    go(*lines(root, f"export={tmp_path / 'poisoned'}", "attack=blended"), task="train")
    triggered = tmp_path / "poisoned" / "triggered"
    figures = [
        go(*lines(root, f"data.cache={cache}", f"data.triggered_root={triggered}"))
        for cache in ("off", "stream")
    ]
    assert figures[0]["data"]["num_triggered_test"] == 20
    assert figures[0]["before"] == figures[1]["before"]
    assert figures[0]["after"] == figures[1]["after"]


def test_the_statistics_are_kept_for_later_runs(root: Path, go: Go, tmp_path: Path) -> None:
    for _ in range(2):
        go(*lines(root, "data.cache=stream"), task="train")
    (kept,) = (tmp_path / "store" / "images").iterdir()
    assert kept.name.endswith(".statistics.json")
