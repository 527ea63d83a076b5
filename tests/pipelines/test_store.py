"""Each backdoored model is trained once."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fst_lightning.checkpoints import SCHEMA, Store, StoreError
from fst_lightning.pipelines import backdoored, run_pipeline
from fst_lightning.pipelines.backdoored import describe, fingerprint
from fst_lightning.pipelines.build.parts import make_source
from fst_lightning.reports import read_results
from tests.pipelines.conftest import Results, Start

Go = Callable[..., Results]
Models = Callable[[], set[str]]


def test_a_second_run_takes_the_model_from_the_store(go: Go, models: Models) -> None:
    first, second = go(), go()
    assert first["seconds"]["train"] > 0
    assert second["seconds"]["train"] is None
    assert first["checkpoints"]["backdoored"] == second["checkpoints"]["backdoored"]
    assert first["before"] == second["before"]
    assert len(models()) == 1


def test_train_and_purify_share_the_model(go: Go, models: Models) -> None:
    trained = go(task="train")
    purified = go()
    assert purified["seconds"]["train"] is None
    assert purified["before"] == trained["before"]
    assert trained["after"] is None
    assert trained["checkpoints"]["purified"] is None
    assert len(models()) == 1


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "attack=blended",
        "attack.poison_ratio=0.2",
        "training.optimizer.lr=0.02",
        "training.batch_size=32",
        "training.label_smoothing=0.1",
        "training.compile=true",
        "data.seed=1",
        "data.crop_padding=1",
        "data.mean=[0.5,0.5,0.5]",
        "model.width=3",
        "trainer.precision=bf16-mixed",
        "trainer.gradient_clip_val=1.0",
        "trainer.accumulate_grad_batches=2",
    ],
)
def test_what_changes_the_model_has_another_key(override: str, start: Start) -> None:
    keys = set()
    for lines in ((), (override,)):
        run = start(*lines)
        keys.add(str(describe(run, make_source(run).load())))
    assert len(keys) == 2


@pytest.mark.parametrize(
    "override",
    [
        "defense=ft",
        "defense.alpha=0.1",
        "tuning.max_epochs=3",
        "tuning.clean_ratio=1",
        "paths.outputs=elsewhere",
        "logger=csv",
        "debug=true",
        "report.examples=false",
        "trainer.log_every_n_steps=3",
    ],
)
def test_what_comes_afterwards_has_not(override: str, start: Start) -> None:
    keys = set()
    for lines in ((), (override,)):
        run = start(*lines)
        keys.add(str(describe(run, make_source(run).load())))
    assert len(keys) == 1


def test_models_of_versions_that_compiled_networks_are_found(start: Start) -> None:
    """There `compile` was a key of the network, and `save_examples` was not described."""
    run = start()
    found = describe(run, make_source(run).load())
    assert found["model"] == {
        "name": "small_resnet",
        "_target_": "fst_lightning.models.small_resnet",
        "width": run.cfg.model.width,
        "blocks": 1,
        "compile": False,
    }
    assert "compile" not in found["training"]
    assert set(found["attack"]) == {"name", *run.plain("attack")}


def test_a_fingerprint_sees_every_label_and_the_images(start: Start) -> None:
    data = make_source(start()).load()
    seen = {fingerprint(data)}
    data.train.labels[5] = (data.train.labels[5] + 1) % 3
    seen.add(fingerprint(data))
    data.test.images[3, 0, 0, 0] ^= 1
    seen.add(fingerprint(data))
    assert len(seen) == 3


def test_versions_of_the_package_share_a_store(
    go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each trains its own model once; the older one's is stale."""

    def model(results: Results) -> Path:
        return Path(results["checkpoints"]["backdoored"]).parent

    today = go()
    with monkeypatch.context() as older:
        older.setattr(backdoored, "SCHEMA", SCHEMA - 1)
        first, second = go(), go()
    again = go()
    assert model(first) == model(second) != model(today) == model(again)
    trained = [results["seconds"]["train"] for results in (today, first, second, again)]
    assert [seconds is None for seconds in trained] == [False, False, True, True]
    stale = {entry.path: entry.stale for entry in Store(tmp_path / "store").list()}
    assert stale == {model(today): False, model(first): True}


def test_retrain_puts_a_new_model_in_the_place_of_the_old_one(go: Go, models: Models) -> None:
    first = go()
    path = Path(first["checkpoints"]["backdoored"])
    inode = path.stat().st_ino
    again = go("retrain=true")
    assert again["seconds"]["train"] > 0
    assert again["before"] == first["before"]
    assert again["checkpoints"]["backdoored"] == str(path)
    assert path.stat().st_ino != inode
    assert len(models()) == 1


def test_same_seed_same_bits_and_another_seed_another_model(start: Start) -> None:
    weights = []
    for lines in (("retrain=true",), ("retrain=true",), ("seed=1",)):
        run = start(*lines, "data.crop_padding=1", "data.horizontal_flip=true")
        run_pipeline(run)
        weights.append(load_file(run.folder / "purified.safetensors"))
    first, second, other = weights
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert not all(torch.equal(value, other[name]) for name, value in first.items())


def test_a_run_leaves_what_it_promises(start: Start, tmp_path: Path) -> None:
    run = start("logger=csv", "callbacks={}", "report.enabled=true")
    results = run_pipeline(run)
    assert read_results(run.folder / "results.json") == (results, None)
    files = {str(file.relative_to(run.folder)) for file in run.folder.rglob("*") if file.is_file()}
    charts = {name for name in files if name.startswith("charts/")}
    assert charts
    assert all(name.endswith(".png") for name in charts)
    assert files - charts == {
        "charts.pdf",
        "config.yaml",
        "results.json",
        "examples.png",
        "report.html",
        "purified.safetensors",
        "curves/train/hparams.yaml",
        "curves/train/metrics.csv",
        "curves/purify/hparams.yaml",
        "curves/purify/metrics.csv",
    }
    curves = (run.folder / "curves/purify/metrics.csv").read_text(encoding="utf-8")
    for key in ("train/loss", "train/penalty", "val/ca", "val/asr", "val/ra", "test/ca"):
        assert key in curves.splitlines()[0].split(",")
    assert not list((tmp_path / "store" / "work").glob("*"))
    assert "width: 4" in (run.folder / "config.yaml").read_text(encoding="utf-8")


def test_the_network_of_a_run_is_channels_last(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fst_lightning.modules import PurificationModule

    seen = []
    step = PurificationModule.training_step

    def look(self: PurificationModule, batch: object, batch_idx: int) -> torch.Tensor | None:
        convolutions = [m for m in self.net.modules() if isinstance(m, torch.nn.Conv2d)]
        seen.append(
            all(m.weight.is_contiguous(memory_format=torch.channels_last) for m in convolutions)
        )
        return step(self, batch, batch_idx)

    monkeypatch.setattr(PurificationModule, "training_step", look)
    run_pipeline(start())  # trained here
    run_pipeline(start())  # from the store
    assert len(seen) == 4
    assert all(seen)


def test_a_store_that_is_read_only_serves_what_it_holds(
    go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user of a test may be one who may write everywhere, so the refusal is made here."""
    store = tmp_path / "store"
    first = go("defense=ft")
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    mkdir, utime = Path.mkdir, os.utime

    def refused(path: object) -> None:
        if store in Path(str(path)).parents:
            raise PermissionError(30, "Read-only file system")

    def make(self: Path, *args: Any, **options: Any) -> None:
        refused(self)
        mkdir(self, *args, **options)

    def touch(path: Any, *args: Any, **options: Any) -> None:
        refused(path)
        utime(path, *args, **options)

    monkeypatch.setattr(Path, "mkdir", make)
    monkeypatch.setattr(os, "utime", touch)
    again = go("defense=ft")
    assert again["seconds"]["train"] is None
    assert again["after"] == first["after"]
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before
    assert not list(tmp_path.rglob("last.ckpt"))
    with pytest.raises(StoreError, match=r"paths\.store="):
        go("seed=1")  # a model that it does not hold


def test_a_store_with_a_limit_keeps_the_model_just_made(go: Go, models: Models) -> None:
    for seed in (0, 1):
        go(f"seed={seed}", "paths.store_limit_gb=0")
        assert len(models()) == 1
    assert go("seed=1")["seconds"]["train"] is None


@pytest.mark.parametrize("limit", ["-1", "much", "true"])
def test_a_limit_that_is_none_is_refused_before_the_training(
    limit: str, go: Go, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="limit"):
        go(f"paths.store_limit_gb={limit}")
    assert not (tmp_path / "store").exists()
