"""What the report of a run is made of, and that making it does no harm."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fst_lightning.metrics import paired_drop_interval
from fst_lightning.pipelines import run_pipeline
from fst_lightning.pipelines.build.parts import make_source
from fst_lightning.pipelines.measure.evidence import EvidenceCollector, relative_changes
from fst_lightning.pipelines.output import run_folder as finish
from fst_lightning.reports import read_results, run_page
from fst_lightning.reports.html import pictures
from fst_lightning.reports.html.page import Page
from fst_lightning.reports.results.evidence import Evidence, confusion
from tests.pipelines.conftest import Results, Start
from tests.reports.html.pages import read

ATTACKED = ("attack=badnets", "attack.poison_ratio=0.3", "training.max_epochs=3", "defense=fst")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Evidence | None]:
    """The evidence that every run comes to."""
    found: list[Evidence | None] = []

    def watched(results: Results, evidence: Evidence | None, *more: Any) -> Page:
        found.append(evidence)
        return run_page(results, evidence, *more)

    monkeypatch.setattr(finish, "run_page", watched)
    return found


def test_evidence_is_what_was_measured(
    start_with_report: Start, seen: list[Evidence | None]
) -> None:
    run = start_with_report(*ATTACKED)
    results = run_pipeline(run)
    (found,) = seen
    assert found is not None
    assert found.after is not None
    assert (found.target, found.num_test) == (0, 30)
    for when, snapshot in (("before", found.before), ("after", found.after)):
        clean, triggered = snapshot.clean, snapshot.triggered
        assert triggered is not None
        assert confusion(clean, 3).trace() / 30 == pytest.approx(results[when]["ca"])
        counts, total = confusion(triggered, 3), results["data"]["num_triggered_test"]
        assert counts[:, 0].sum() / total == pytest.approx(results[when]["asr"])
        assert counts.trace() / total == pytest.approx(results[when]["ra"])
        assert np.all(triggered.wanted == 0)
        if when == "before":
            others = clean.labels != 0
            control = float((clean.predictions[others] == 0).mean())
            assert results["attack"]["control_rate"] == pytest.approx(control)
        assert clean.features is not None
        assert ((clean.confidence >= 1 / 3) & (clean.confidence <= 1)).all()
    before, after = (s.clean.predictions == s.clean.labels for s in (found.before, found.after))
    low, high = paired_drop_interval(int((before & ~after).sum()), int((after & ~before).sum()), 30)
    assert results["ci95"]["change"]["ca"] == pytest.approx([-high, -low])
    page = read((run.folder / "report.html").read_text("utf-8"))
    shown = f"{100 * results['attack']['control_rate']:#.3g} %"
    assert page.keyed["attack.control_rate"] == shown
    assert page.keyed["after.ca"] == f"{100 * results['after']['ca']:#.3g} %"


def test_weights_and_examples_are_those_of_the_files(
    start_with_report: Start, seen: list[Evidence | None]
) -> None:
    run = start_with_report(*ATTACKED)
    results = run_pipeline(run)
    (found,) = seen
    assert found is not None
    assert found.after is not None
    old, new = (load_file(results["checkpoints"][key]) for key in ("backdoored", "purified"))
    assert found.before.head is not None
    assert found.after.head is not None
    assert np.array_equal(found.before.head, old["fc.weight"].numpy())
    assert np.array_equal(found.after.head, new["fc.weight"].numpy())
    parts = [(old[f"fc.{name}"], new[f"fc.{name}"]) for name in ("weight", "bias")]
    moved = sum(float(((b - a) ** 2).sum()) for a, b in parts)
    size = sum(float((a**2).sum()) for a, _ in parts)
    assert found.layers["fc"] == pytest.approx((moved / size) ** 0.5, rel=1e-5)
    # The head on the features it was seen with gives the predictions that were seen.
    clean = found.after.clean
    assert clean.features is not None
    logits = clean.features @ new["fc.weight"].numpy().T + new["fc.bias"].numpy()
    assert (logits.argmax(1) == clean.predictions).all()
    assert {example.label for example in found.examples} == {1, 2}
    changed = found.examples[0].clean != found.examples[0].triggered
    assert changed.any()
    assert not changed[:4].any()  # the patch of BadNets is in the lower right corner


def test_a_report_changes_nothing(
    start_with_report: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever looking does to modes and random numbers, the run goes on as without it."""
    really_look = EvidenceCollector._look
    look = EvidenceCollector.look

    def careless(collector: EvidenceCollector, when: str) -> None:
        really_look(collector, when)
        torch.rand(3)
        collector.module.net.train()

    def watched(collector: EvidenceCollector) -> None:
        modes = [part.training for part in collector.module.modules()]
        state = torch.get_rng_state()
        look(collector)
        assert torch.get_rng_state().equal(state)
        assert [part.training for part in collector.module.modules()] == modes
        assert collector.trouble is None

    monkeypatch.setattr(EvidenceCollector, "_look", careless)
    monkeypatch.setattr(EvidenceCollector, "look", watched)
    weights = []
    for enabled in ("true", "false"):
        run = start_with_report(*ATTACKED, f"report.enabled={enabled}", "data.crop_padding=1")
        results = run_pipeline(run)
        assert (run.folder / "report.html").exists() == (enabled == "true")
        weights.append((load_file(results["checkpoints"]["purified"]), results["after"]))
    (first, figures), (second, others) = weights
    assert all(first[name].equal(second[name]) for name in first)
    assert figures == others


def test_changes_of_any_size_are_those_of_the_numbers() -> None:
    """Squares that float32 has no number for."""
    old = {"a.weight": torch.tensor([3e30]), "a.bias": torch.tensor([4e30]), "b": torch.ones(2)}
    new = {"a.weight": torch.tensor([8e30]), "a.bias": torch.tensor([4e30]), "b": torch.ones(2)}
    assert relative_changes(old, new) == {"a": pytest.approx(1.0), "b": 0.0}
    small = {"a": torch.tensor([2e-30])}
    assert relative_changes(small, {"a": torch.tensor([3e-30])}) == {"a": pytest.approx(0.5)}


def test_a_network_without_finite_answers_has_a_report(
    start_with_report: Start, seen: list[Evidence | None], tmp_path: Path
) -> None:
    """Its weights are numbers; what it makes of an image is none."""
    run = start_with_report(*ATTACKED, "defense=none")
    kept = Path(run_pipeline(run)["checkpoints"]["backdoored"])
    state = load_file(kept)
    with safe_open(kept, "pt") as file:
        about = file.metadata()
    huge = {n: v * 1e25 if n.endswith("weight") else v for n, v in state.items()}
    save_file(huge, tmp_path / "huge.safetensors", metadata=about)
    run = start_with_report(
        *ATTACKED, "defense=none", f"checkpoint={tmp_path / 'huge.safetensors'}"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        run_pipeline(run)
    found = seen[-1]
    assert found is not None
    assert found.before.clean.features is None
    assert np.isnan(found.before.clean.confidence).any()
    assert "Features" not in (run.folder / "report.html").read_text("utf-8").partition("<pre>")[0]


@pytest.mark.parametrize("task", ["train", "purify"])
def test_a_clean_model_has_a_report(
    start_with_report: Start, task: str, seen: list[Evidence | None]
) -> None:
    run = start_with_report("attack=none", task=task)
    run_pipeline(run)
    (found,) = seen
    assert found is not None
    assert found.before.triggered is None
    assert (found.after is None) == (task == "train")
    assert (found.target, found.examples) == (None, ())
    assert "asr" not in (run.folder / "report.html").read_text("utf-8").partition("<pre>")[0]


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ("render", "report.html was not written: KeyError: 'x'"),
        ("draw", "report.html was not written: KeyError: 'x'"),
        ("look", "report.html lacks its pictures: KeyError: 'x'"),
    ],
)
def test_a_broken_report_is_one_line(
    start_with_report: Start,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    broken: str,
    says: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("x")

    if broken == "render":
        monkeypatch.setattr(finish, "run_page", fail)
    elif broken == "draw":
        monkeypatch.setattr(pictures, "heat_map", fail)
    else:
        monkeypatch.setattr(EvidenceCollector, "_look", fail)
    run = start_with_report()
    run_pipeline(run)
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if "report" in line and "written  " not in line][
        -1
    ] == f"warning  {says}"
    results, error = read_results(run.folder / "results.json")
    assert error is None
    assert results is not None
    assert (run.folder / "report.html").exists() == (broken == "look")


def test_other_processes_look_at_nothing(
    start_with_report: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = EvidenceCollector(start_with_report(), *3 * [None])  # type: ignore[arg-type]
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    collector.look()
    assert (collector.trouble, collector.evidence()) == (None, None)
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    collector.look()
    assert collector.trouble is not None


def test_another_projection_is_refused_before_work_starts(
    start_with_report: Start, models: Callable[[], set[str]]
) -> None:
    with pytest.raises(ValueError, match=r"`report\.projection` to be one of pca, tsne"):
        run_pipeline(start_with_report("report.projection=umap"))
    assert models() == set()


def test_what_detectors_find_is_shown(
    start_with_report: Start, seen: list[Evidence | None]
) -> None:
    quick = ["detector.nc.rounds=1", "detector.nc.steps=1", "detector.mm_bd.steps=1"]
    run = start_with_report("attack=none", "detector=[mm_bd,nc]", "data.num_classes=4", *quick)
    results = run_pipeline(run)
    (found,) = seen
    assert found is not None
    assert set(found.recovered) == {"before", "after"}
    for when, by_detector in found.recovered.items():
        assert set(by_detector) == {"mm_bd", "nc"}
        for shown in by_detector.values():
            assert [picture.shape for picture in shown.by_class] == [(8, 8, 3)] * 4
        assert by_detector["mm_bd"].triggered == ()
        patch = by_detector["nc"]
        assert len(patch.clean) == len(patch.triggered) > 0
        # The images that are shown are test images of other classes.
        test = make_source(run).load().test
        suspected = results["detection"][when]["detectors"]["nc"]["suspected_class"]
        others = test.images[test.labels != suspected].permute(0, 2, 3, 1).numpy()
        for image in patch.clean:
            assert any(np.abs(image.astype(int) - other).max() <= 1 for other in others)
    text = (run.folder / "report.html").read_text("utf-8")
    assert "Is it backdoored?" in text
    assert "nc, the recovered trigger, before" in text


def test_nc_that_suspects_no_class_says_so(
    start_with_report: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = [f"defense.{name}=2" for name in ("rounds", "steps", "restarts")]
    results = run_pipeline(start_with_report("defense=nc", "defense.threshold=50", *quick))
    findings = results["defense"]["findings"]
    assert findings["flagged"] == []
    shown = capsys.readouterr().out
    assert "no success: No class was suspected" in shown
    index = findings["anomaly_index"]
    assert f"Class {int(np.argmax(index))} came closest" in shown or "No recovered" in shown
    missed = [{"what": "No class was suspected", "why": findings["summary"]}]
    assert findings["shortfalls"] == missed
    assert results["after"] == results["before"]


def test_curves_are_those_of_the_logger(start_with_report: Start) -> None:
    run = start_with_report("logger=csv", "tuning.max_epochs=2")
    run_pipeline(run)
    text = (run.folder / "report.html").read_text("utf-8")
    assert "Purification, epoch by epoch" in text
    assert "Training, epoch by epoch" in text
    again = start_with_report("logger=csv")
    stale = again.folder / "curves" / "train" / "metrics.csv"
    stale.parent.mkdir(parents=True)
    stale.write_bytes((run.folder / "curves" / "train" / "metrics.csv").read_bytes())
    run_pipeline(again)
    text = (again.folder / "report.html").read_text("utf-8")
    assert "Purification, epoch by epoch" in text
    assert "Training, epoch by epoch" not in text  # the model came from the store
