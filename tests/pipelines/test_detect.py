"""``detect.py`` from its configuration to ``results.json``."""

from __future__ import annotations

import io
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file

from fst_lightning.checkpoints import read_checkpoint
from fst_lightning.configuration import groups
from fst_lightning.pipelines import Run, run_pipeline
from fst_lightning.pipelines.measure.references import FIRST_SEED
from fst_lightning.reports import read_results, render_run
from fst_lightning.reports.results.detection import Threshold, detection_lines, sentence
from tests.runs import make_run

QUICK = {
    "mm_bd": ["detector.mm_bd.starts=1", "detector.mm_bd.steps=2"],
    "nc": ["detector.nc.images=12", "detector.nc.rounds=1", "detector.nc.steps=1"],
    "bti_dbf": ["detector.bti_dbf.images=12", "detector.bti_dbf.epochs=1"],
    "noise_response": ["detector.noise_response.images=12", "detector.noise_response.repeats=1"],
}


def make(folder: Path, store: Path, names: list[str], *more: str) -> Run:
    quick = [line for name in names for line in QUICK.get(name, [])]
    chosen = [f"detector=[{','.join(names)}]", "data.num_classes=4", *quick, *more]
    return make_run("detect", folder, *chosen, store=store)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.mark.parametrize("name", groups()["detector"])
def test_every_detector_runs(name: str, tmp_path: Path, store: Path) -> None:
    results = run_pipeline(make(tmp_path, store, [name], "detector_images=20"))
    assert results["task"] == "detect"
    assert results["after"] is None
    block = results["detection"]["before"]
    assert block["verdict"] in ("backdoored", "no_sign", "cannot_tell")
    found = block["detectors"][name]
    assert len(found["statistics"]) == 4
    assert found["suspected_class"] in range(4)
    assert found["seconds"] > 0
    assert results["data"]["num_clean_tuning"] == 20
    saved, error = read_results(tmp_path / "results.json")
    assert error is None
    assert saved is not None
    assert saved["detection"] == results["detection"]
    printed = io.StringIO()
    render_run(results, Console(file=printed, width=200))
    lines = [line for line in printed.getvalue().splitlines() if line.startswith("verdict")]
    assert lines == [f"verdict  {sentence(block)}"]


def backdoored(results: dict[str, Any]) -> Path:
    return Path(results["checkpoints"]["backdoored"])


def test_a_file_is_scanned_and_left_as_it_is(tmp_path: Path, store: Path) -> None:
    first = run_pipeline(make(tmp_path / "first", store, ["mm_bd"]))
    path = tmp_path / "network.safetensors"
    shutil.copy(backdoored(first), path)
    content = path.read_bytes()
    second = run_pipeline(make(tmp_path / "second", store, ["mm_bd"], f"checkpoint={path}"))
    assert path.read_bytes() == content
    one, two = (each["detection"]["before"]["detectors"]["mm_bd"] for each in (first, second))
    assert one["statistics"] == two["statistics"]
    assert not list((tmp_path / "second").glob("*.safetensors"))


def test_references_rank_the_network(tmp_path: Path, store: Path) -> None:
    """The rank is counted by hand from the scores of the same networks, scanned alone."""
    first = run_pipeline(make(tmp_path / "first", store, ["mm_bd"]))
    folder = tmp_path / "clean"
    folder.mkdir()
    state = load_file(backdoored(first))
    scores = []
    for number in range(3):
        generator = torch.Generator().manual_seed(number)
        changed = {
            name: value + 0.3 * torch.randn(value.shape, generator=generator)
            if name.endswith("weight")
            else value
            for name, value in state.items()
        }
        path = folder / f"{number}.safetensors"
        save_file(changed, path)
        alone = run_pipeline(
            make(
                tmp_path / f"alone{number}",
                store,
                ["mm_bd"],
                f"checkpoint={path}",
                "model=small_resnet",
                "model.width=4",
            )
        )
        scores.append(alone["detection"]["before"]["detectors"]["mm_bd"]["score"])
    ranked = run_pipeline(
        make(tmp_path / "ranked", store, ["mm_bd"], f"detector_reference={folder}")
    )
    block = ranked["detection"]["before"]
    own = block["detectors"]["mm_bd"]
    assert (block["calibration"], block["num_references"]) == ("reference", 3)
    assert own["p_value"] == (1 + sum(score >= own["score"] for score in scores)) / 4
    assert own["statistics"] == first["detection"]["before"]["detectors"]["mm_bd"]["statistics"]


def test_clean_networks_are_trained_once_and_rank_the_network(tmp_path: Path) -> None:
    """Their scores are those of the same files, trained by ``train.py`` and scanned alone."""
    store = tmp_path / "store"
    more = ["detector_train_reference=2", "attack=badnets", "attack.poison_ratio=0.2"]
    results = run_pipeline(make(tmp_path / "first", store, ["mm_bd"], *more))
    block = results["detection"]["before"]
    assert (block["calibration"], block["num_references"]) == ("reference", 2)
    models = sorted((store / "models").iterdir())
    assert len(models) == 3
    scores = []
    for seed in (FIRST_SEED, FIRST_SEED + 1):
        lines = ["attack=none", f"seed={seed}", "data.num_classes=4"]
        run = make_run("train", tmp_path / f"train{seed}", *lines, store=store)
        path = backdoored(run_pipeline(run))
        alone = run_pipeline(
            make(tmp_path / f"alone{seed}", store, ["mm_bd"], f"checkpoint={path}")
        )
        scores.append(alone["detection"]["before"]["detectors"]["mm_bd"]["score"])
    own = block["detectors"]["mm_bd"]
    assert own["references"] == scores
    assert own["p_value"] == (1 + sum(score >= own["score"] for score in scores)) / 3
    # Nothing was trained again: neither for train.py, nor for a second scan.
    again = run_pipeline(make(tmp_path / "again", store, ["mm_bd"], *more))
    assert sorted((store / "models").iterdir()) == models
    assert again["detection"]["before"]["detectors"]["mm_bd"]["references"] == scores
    if own["p_value"] == 1 / 3:
        assert block["verdict"] == "cannot_tell"


def test_a_reference_of_another_architecture(tmp_path: Path, store: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"detector_reference: .*other\.safetensors"):
        run_pipeline(make(tmp_path / "run", store, ["mm_bd"], f"detector_reference={tmp_path}"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("detector_images=9", "whole number of 10 or more, but got 9"),
        ("detector_images=0.5", "whole number of 10 or more"),
        ("fail_on=0.05", "'p<NUMBER'"),
        ("fail_on='p<2'", "'p<NUMBER'"),
        ("detector_reference=nowhere", "found none in"),
        ("detector_train_reference=0", "whole number of 1 or more, but got 0"),
        ("detector_train_reference=true", "whole number of 1 or more, but got True"),
        ("on_mismatch=no", "one of stop, warn, but got 'no'"),
        ("data.num_classes=3", "4 classes or more, but it has 3"),
        ("data.num_train=9", "10 clean images or more"),
    ],
)
def test_refusals(line: str, message: str, tmp_path: Path, store: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run_pipeline(make(tmp_path, store, ["mm_bd"], line))


def test_both_kinds_of_references(tmp_path: Path, store: Path) -> None:
    both = [f"detector_reference={tmp_path}", "detector_train_reference=2"]
    with pytest.raises(ValueError, match="one of `detector_reference` and"):
        run_pipeline(make(tmp_path, store, ["mm_bd"], *both))


def test_weights_that_are_not_finite(tmp_path: Path, store: Path) -> None:
    state = load_file(backdoored(run_pipeline(make(tmp_path / "first", store, ["mm_bd"]))))
    name = next(name for name in state if name.endswith("weight"))
    state[name].view(-1)[3] = float("nan")
    path = tmp_path / "broken.safetensors"
    save_file(state, path)
    network = ["model=small_resnet", "model.width=4", f"checkpoint={path}"]
    with pytest.raises(ValueError, match=f"`{re.escape(name)}` has values that are NaN"):
        run_pipeline(make(tmp_path / "second", store, ["mm_bd"], *network))


def test_a_folder_of_one_class(tmp_path: Path, store: Path) -> None:
    for split in ("train", "test"):
        folder = tmp_path / "images" / split / "only"
        folder.mkdir(parents=True)
        for number in range(12):
            Image.new("RGB", (32, 32), (20 * number, 9, 9)).save(folder / f"{number}.png")
    lines = ["data=image_folder", f"data.root={tmp_path / 'images'}", "detector=[mm_bd]"]
    with pytest.raises(ValueError, match="classes"):
        run_pipeline(make_run("detect", tmp_path / "run", *lines, store=store))


def test_a_checkpoint_is_checked_against_the_data(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in ``purify.py``, whose check is tested by itself; a network of the store needs none."""
    checked: list[int] = []
    monkeypatch.setattr(
        "fst_lightning.pipelines.assemble.check_match",
        lambda run, net, data: checked.append(len(data.train_rows)),
    )
    first = run_pipeline(make(tmp_path / "first", store, ["mm_bd"]))
    assert checked == []
    line = f"checkpoint={backdoored(first)}"
    run_pipeline(make(tmp_path / "second", store, ["mm_bd"], line, "detector_images=20"))
    assert checked == [20]


def test_no_detector(tmp_path: Path, store: Path) -> None:
    with pytest.raises(ValueError, match=r"such as detector=\[mm_bd\]"):
        run_pipeline(make(tmp_path, store, []))


def test_a_network_that_guesses_is_not_judged(tmp_path: Path, store: Path) -> None:
    """A head without weights gives every image the class of the largest bias."""
    state = load_file(backdoored(run_pipeline(make(tmp_path / "first", store, ["mm_bd"]))))
    state["fc.weight"].zero_()
    state["fc.bias"] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    path = tmp_path / "constant.safetensors"
    save_file(state, path)
    network = ["model=small_resnet", "model.width=4", f"checkpoint={path}", "on_mismatch=warn"]
    results = run_pipeline(make(tmp_path / "second", store, ["mm_bd"], *network))
    block = results["detection"]["before"]
    assert block["verdict"] == "cannot_tell"
    assert "no better than guessing among 4 classes" in sentence(block)
    assert block["suspected_class"] is None


def block(**changed: Any) -> dict[str, Any]:
    content: dict[str, Any] = {
        "verdict": "backdoored",
        "reason": None,
        "p_value": 0.004,
        "suspected_class": 3,
        "calibration": "parametric",
        "num_references": 0,
        "strongest": "mm_bd",
        "detectors": {},
    }
    return content | changed


def test_sentences() -> None:
    assert sentence(block()).startswith("backdoor found (class 3), p = 0.0040, by the detectors'")
    ranked = block(calibration="reference", num_references=19, p_value=0.05)
    assert "ranked among 19 clean networks" in sentence(ranked)
    nothing = sentence(block(verdict="no_sign", p_value=0.41, suspected_class=None))
    assert nothing.startswith("no sign of a backdoor, p = 0.4100")
    assert "clean" not in nothing.split(",")[0]
    told = sentence(block(verdict="cannot_tell", reason="it guesses", p_value=None))
    assert told == "cannot tell, because it guesses"


def test_the_threshold_of_a_pipeline() -> None:
    threshold = Threshold.parse("p < 0.05")
    assert threshold is not None
    assert Threshold.parse(None) is None
    assert threshold.crossed({"detection": {"before": block(), "after": None}})
    assert not threshold.crossed({"detection": {"before": block(p_value=0.05), "after": None}})
    assert not threshold.crossed({"detection": {"before": block(verdict="cannot_tell")}})
    # What is left after a purification decides.
    after = block(p_value=0.7, verdict="no_sign")
    assert not threshold.crossed({"detection": {"before": block(), "after": after}})
    assert not threshold.crossed({})


def test_a_purification_is_scanned_before_and_after(tmp_path: Path, store: Path) -> None:
    """The scan before it is that of ``detect.py``, for the same images; no number is moved."""
    lines = ["attack=badnets", "attack.poison_ratio=0.2", "defense=fst"]
    quick = ["detector=[mm_bd]", *QUICK["mm_bd"], "detector_images=20"]
    run = make_run("purify", tmp_path / "scanned", *lines, *quick, store=store)
    scanned = run_pipeline(replace(run, cfg=with_classes(run)))
    run = make_run("purify", tmp_path / "plain", *lines, store=store)
    plain = run_pipeline(replace(run, cfg=with_classes(run)))
    assert plain.get("detection") is None
    assert plain["after"] == scanned["after"]
    before, after = (scanned["detection"][when]["detectors"] for when in ("before", "after"))
    assert len(before["mm_bd"]["statistics"]) == 4
    assert before["mm_bd"]["statistics"] != after["mm_bd"]["statistics"]
    said = [line for line in detection_lines(scanned) if line.startswith("scan")]
    assert [line.split(":")[0] for line in said] == ["scan     before", "scan     after"]
    one, two = (load_file(each["checkpoints"]["purified"]) for each in (plain, scanned))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_a_recovered_trigger_is_tried_on_the_purified_network(tmp_path: Path, store: Path) -> None:
    lines = ["attack=badnets", "attack.poison_ratio=0.2", "defense=ft"]
    quick = ["detector=[mm_bd,nc]", *QUICK["mm_bd"], *QUICK["nc"], "detector_images=20"]
    run = make_run("purify", tmp_path, *lines, *quick, store=store)
    results = run_pipeline(replace(run, cfg=with_classes(run)))
    before, after = (results["detection"][when]["detectors"] for when in ("before", "after"))
    assert before["mm_bd"]["trigger"] is None
    first, second = before["nc"]["trigger"], after["nc"]["trigger"]
    for name in ("", "_after"):
        low, high = first[f"ci95{name}"]
        assert 0 <= low <= first[f"success{name}"] <= high <= 1
    # The trigger that the second scan finds has no later network to be tried on.
    assert (second["success_after"], second["ci95_after"]) == (None, None)
    assert second["images"] > 0


def with_classes(run: Run) -> Any:
    cfg = run.cfg.copy()
    cfg.data.num_classes = 4
    return cfg


def test_references_without_a_detector(tmp_path: Path, store: Path) -> None:
    run = make_run("purify", tmp_path, f"detector_reference={tmp_path}", store=store)
    with pytest.raises(ValueError, match=r"detector=\[\.\.\.\] beside"):
        run_pipeline(run)


def test_a_network_of_a_library_brings_its_normalization(tmp_path: Path, store: Path) -> None:
    """As in ``purify.py``: the images of a scan are those that the network was made for."""
    library = ["model=timm", "model.name=resnet10t"]
    # The data say nothing, so that the statistics would be those of the images.
    lines = [*library, "training.max_epochs=1", "data.num_classes=4", "data.num_train=60"]
    results = run_pipeline(
        make_run("detect", tmp_path, "detector=[head_weights]", *lines, store=store)
    )
    card = read_checkpoint(backdoored(results)).card
    assert card is not None
    assert list(card.mean) == pytest.approx([0.485, 0.456, 0.406])
