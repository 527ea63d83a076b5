"""An interrupted run goes on as if nothing had happened."""

import importlib
import os
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file

from fst_lightning.defenses import SpectralSignatures
from fst_lightning.pipelines import Run, run_pipeline
from fst_lightning.pipelines.runtime.last_checkpoint import LastCheckpoint
from tests.checkpoints.samples import Calls
from tests.pipelines.conftest import Start
from tests.runs import make_run

# Random crops and flips, so that the random numbers of every epoch matter.
LINES = (
    "training.max_epochs=3",
    "data.crop_padding=1",
    "data.horizontal_flip=true",
)
TUNING = ("tuning.max_epochs=3",)
STAGES = {"train": "BackdoorModule", "tune": "PurificationModule"}


class Interrupted(RuntimeError):
    """What ends the process, in a test."""


class Interrupt(L.Callback):
    """Fails in the middle of an epoch of one of the two trainings."""

    def __init__(self, module: str, epoch: int) -> None:
        self.module = module
        self.epoch = epoch

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        if type(pl_module).__name__ == self.module and trainer.current_epoch == self.epoch:
            raise Interrupted


def interrupt(
    start: Start, stage: str, *overrides: str, epoch: int = 1, task: str = "purify"
) -> Run:
    """Run until an epoch of a stage."""
    callback = [
        f"+callbacks.stop._target_={__name__}.Interrupt",
        f"+callbacks.stop.module={STAGES[stage]}",
        f"+callbacks.stop.epoch={epoch}",
    ]
    more = TUNING if task == "purify" else ()
    run = start(*LINES, *more, *overrides, *callback, task=task)
    with pytest.raises(Interrupted):
        run_pipeline(run)
    return run


def purified(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "purified.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    run = make_run("purify", folder / "run", *LINES, *TUNING, store=folder / "store")
    run_pipeline(run)
    return purified(run)


def work(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "store" / "work").glob("*/*.ckpt"))


@pytest.mark.parametrize("stage", ["train", "tune"])
@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_a_resumed_run_ends_with_the_same_bits(
    stage: str,
    epoch: int,
    start: Start,
    uninterrupted: dict[str, torch.Tensor],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    interrupted = interrupt(start, stage, epoch=epoch)
    assert not (interrupted.folder / "results.json").exists()
    assert not (interrupted.folder / "purified.safetensors").exists()
    assert len(work(tmp_path)) == (epoch > 0)
    run = start(*LINES, *TUNING, "resume=true")
    results = run_pipeline(run)
    assert (f"{stage}: continues from" in capsys.readouterr().out) == (epoch > 0)
    assert same(purified(run), uninterrupted)
    assert (results["seconds"]["train"] is None) == (stage == "tune")
    assert not list((tmp_path / "store" / "work").glob("*"))
    again = start(*LINES, *TUNING)
    assert run_pipeline(again)["after"] == results["after"]


def test_interrupted_in_both_stages(
    start: Start, uninterrupted: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    interrupt(start, "train")
    interrupt(start, "tune", "resume=true", epoch=2)
    run = start(*LINES, *TUNING, "resume=true")
    run_pipeline(run)
    assert same(purified(run), uninterrupted)


def test_without_resume_a_run_starts_anew_and_says_what_it_could(
    start: Start,
    uninterrupted: dict[str, torch.Tensor],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    interrupt(start, "tune")
    run = start(*LINES, *TUNING)
    run_pipeline(run)
    said = capsys.readouterr().out
    assert "starts anew; resume=true would continue from" in said
    assert same(purified(run), uninterrupted)
    assert not work(tmp_path)


@pytest.mark.parametrize("whole", [True, False])
def test_resume_from_a_path(
    whole: bool, start: Start, uninterrupted: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    interrupt(start, "tune")
    (last,) = work(tmp_path)
    kept = tmp_path / "kept"
    kept.mkdir()
    last.rename(kept / "last.ckpt")
    run = start(*LINES, *TUNING, f"resume={kept / 'last.ckpt' if whole else kept}")
    run_pipeline(run)
    assert same(purified(run), uninterrupted)


def test_train_resumes_from_a_path(start: Start, tmp_path: Path) -> None:
    reference = run_pipeline(
        start(*LINES, f"paths.store={tmp_path / 'store_of_its_own'}", task="train")
    )
    interrupt(start, "train", task="train")
    (last,) = work(tmp_path)
    moved = last.rename(tmp_path / "moved.ckpt")
    results = run_pipeline(start(*LINES, f"resume={moved}", task="train"))
    files = [load_file(each["checkpoints"]["backdoored"]) for each in (reference, results)]
    assert same(*files)


def test_a_strangers_checkpoint_is_kept_apart_from_an_undisturbed_training(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = run_pipeline(start(*LINES, f"paths.store={tmp_path / 'another'}", task="train"))
    interrupt(start, "train", task="train")
    (last,) = work(tmp_path)
    content = torch.load(last, weights_only=True)
    for tensor in content["state_dict"].values():
        if tensor.is_floating_point():
            tensor.add_(0.1)
    stranger = tmp_path / "stranger.ckpt"
    torch.save(content, stranger)
    last.unlink()
    disturbed = run_pipeline(start(*LINES, f"resume={stranger}", task="train"))
    assert "that of an uninterrupted training is another one" in capsys.readouterr().out
    results = run_pipeline(start(*LINES, task="train"))
    assert results["seconds"]["train"] > 0
    files = [
        load_file(each["checkpoints"]["backdoored"]) for each in (reference, results, disturbed)
    ]
    assert same(*files[:2])
    assert not same(*files[1:])
    again = run_pipeline(start(*LINES, f"resume={stranger}", task="train"))
    assert again["seconds"]["train"] is None
    assert again["checkpoints"] == disturbed["checkpoints"]


def test_its_own_checkpoint_by_its_path_is_resume_true(start: Start, tmp_path: Path) -> None:
    interrupt(start, "train", task="train")
    (last,) = work(tmp_path)
    results = run_pipeline(start(*LINES, f"resume={last}", task="train"))
    again = run_pipeline(start(*LINES, task="train"))
    assert again["seconds"]["train"] is None
    assert again["checkpoints"] == results["checkpoints"]


def test_a_path_is_for_the_stage_of_the_command(
    start: Start, uninterrupted: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """Of a purification: the model that it needs first is trained without it."""
    interrupt(start, "tune")
    (last,) = work(tmp_path)
    named = last.rename(tmp_path / "named.ckpt")
    shutil.rmtree(tmp_path / "store")
    run = start(*LINES, *TUNING, f"resume={named}")
    assert run_pipeline(run)["seconds"]["train"] > 0
    assert same(purified(run), uninterrupted)


def test_what_a_strangers_checkpoint_began_is_not_continued_without_it(
    start: Start, uninterrupted: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    interrupt(start, "tune")
    (last,) = work(tmp_path)
    named = last.rename(tmp_path / "named.ckpt")
    interrupt(start, "tune", f"resume={named}", epoch=2)
    assert len(work(tmp_path)) == 1
    run = start(*LINES, *TUNING, "resume=true")
    run_pipeline(run)
    assert same(purified(run), uninterrupted)
    assert len(work(tmp_path)) == 1


def test_resume_with_nothing_to_resume_runs_normally(
    start: Start, uninterrupted: dict[str, torch.Tensor]
) -> None:
    run = start(*LINES, *TUNING, "resume=true")
    run_pipeline(run)
    assert same(purified(run), uninterrupted)


@pytest.mark.parametrize(
    "change",
    ["defense.alpha=0.1", "defense=ft", "tuning.optimizer.lr=0.02", "tuning.clean_ratio=0.4"],
)
def test_another_run_is_not_continued(
    change: str, start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(start, "tune")
    (last,) = work(tmp_path)
    run = start(*LINES, *TUNING, change, "resume=true")
    run_pipeline(run)
    assert "tune: continues" not in capsys.readouterr().out
    assert last.is_file()


def test_the_same_file_with_another_attack_is_another_run(start: Start, tmp_path: Path) -> None:
    """The trigger is in the checkpoint, so that one with another trigger would not fit."""
    trained = run_pipeline(start(*LINES, task="train"))
    path = f"checkpoint={trained['checkpoints']['backdoored']}"
    interrupt(start, "tune", path, "attack=badnets")
    results = run_pipeline(start(*LINES, *TUNING, path, "attack=blended", "resume=true"))
    assert results["attack"]["name"] == "blended"


def test_rows_that_were_found_are_not_looked_for_again(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training without them is what breaks off, and what goes on."""
    purify_pipeline = importlib.import_module("fst_lightning.pipelines.apply_defense")
    defense = "defense=spectral"
    whole = start(*LINES, *TUNING, defense)
    run_pipeline(whole)
    with monkeypatch.context() as patch:
        kept = purify_pipeline.train_backdoored

        def breaks_off(*arguments: Any) -> Any:
            arguments[0].cfg.callbacks = {
                "stop": {"_target_": f"{__name__}.Interrupt", "module": STAGES["train"], "epoch": 1}
            }
            return kept(*arguments)

        patch.setattr(purify_pipeline, "train_backdoored", breaks_off)
        with pytest.raises(Interrupted):
            run_pipeline(start(*LINES, *TUNING, defense))

    def looks_again(*_: Any) -> Any:
        raise AssertionError("these rows were found before")

    monkeypatch.setattr(SpectralSignatures, "suspects", looks_again)
    resumed = start(*LINES, *TUNING, defense, "resume=true")
    results = run_pipeline(resumed)
    assert same(purified(resumed), purified(whole))
    assert results["defense"]["findings"]["flagged"] > 0


@pytest.mark.parametrize("kind", [LastCheckpoint, ModelCheckpoint])
def test_a_checkpoint_does_not_say_what_is_removed(
    kind: type[ModelCheckpoint], start: Start, tmp_path: Path
) -> None:
    interrupt(start, "train", task="train")
    (last,) = work(tmp_path)
    (tmp_path / "precious").mkdir()
    checkpoint = torch.load(last, weights_only=True)
    there = last.parent / "../../../precious"  # below the folder, to whoever looks at the text
    assert there.is_dir()
    options: dict[str, Any] = {"filename": "last", "save_top_k": 1, "save_on_train_epoch_end": True}
    writer = kind(last.parent, **({} if kind is LastCheckpoint else options))
    state = ModelCheckpoint.state_dict(writer) | {"best_model_path": str(there)}
    checkpoint["callbacks"] = {writer.state_key: state}
    evil = tmp_path / "evil.ckpt"
    torch.save(checkpoint, evil)
    run_pipeline(start(*LINES, f"resume={evil}", task="train"))
    assert (tmp_path / "precious").is_dir()


def test_a_checkpoint_to_resume_from_is_no_pickle_that_runs(start: Start, tmp_path: Path) -> None:
    evil = tmp_path / "evil.ckpt"
    torch.save({"state_dict": {}, "callbacks": Calls(os.mkdir, str(tmp_path / "canary"))}, evil)
    with pytest.raises(ValueError, match=r"evil\.ckpt: .*mkdir`, which could run code"):
        run_pipeline(start(*LINES, f"resume={evil}", task="train"))
    assert not (tmp_path / "canary").exists()
