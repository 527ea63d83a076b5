"""Bad values are refused in one line before anything is trained."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fst_lightning.pipelines import run_pipeline
from fst_lightning.pipelines.build.arguments import check_arguments
from tests.pipelines.conftest import Start

BAD = {
    "attack.poison_ratio=2": "poison_ratio` to be a number in [0, 1], but got 2",
    "attack.poison_ratio=0.0000001": "rounds to none",
    "attack.poison_ratio=abc": "`attack.poison_ratio` to be a number, but got 'abc'",
    "attack.target_label=99": "to be in 0..2 for 3 classes, but got 99",
    "attack.target_label=1.5": "`attack.target_label` to be a whole number, but got 1.5",
    "attack.label_map=foo": "all_to_all, clean_label, untargeted, but got 'foo'",
    "defense.reinit=foo": "orthogonal, uniform, none, but got 'foo'",
    "defense.alpha=-1": "0 or more, but got -1",
    "defense.alpha=foo": "`defense.alpha` to be a number, but got 'foo'",
    "defense.alpha=true": "`defense.alpha` to be a number, but got True",
    "defense.head=foo": "`foo` is no module of this name",
    "defense.project_norm=foo": "`defense.project_norm` to be true or false, but got 'foo'",
    "trainer.precision=foo": "bf16-mixed",
    "trainer.precision=8": "bf16-mixed",
    "trainer.gradient_clip_val=abc": "`trainer.gradient_clip_val`",
    "trainer.devices=0": "devices=0",
    "trainer.accelerator=foo": "invalid accelerator name",
    "tuning.max_epochs=abc": "whole number of 1 or more, but got 'abc'",
    "tuning.max_epochs=0": "`tuning.max_epochs` to be a whole number of 1 or more, but got 0",
    "tuning.max_epochs=-1": "whole number of 1 or more, but got -1",
    "tuning.max_epochs=1.5": "whole number of 1 or more, but got 1.5",
    "tuning.max_epochs=null": "whole number of 1 or more, but got None",
    "training.max_epochs=-1": "`training.max_epochs` to be a whole number of 1 or more",
    "training.batch_size=0": "`training.batch_size` to be a whole number of 1 or more",
    "tuning.batch_size=0": "`tuning.batch_size` to be a whole number of 1 or more, but got 0",
    "tuning.batch_size=1": "batches of 2 or more",
    "tuning.clean_ratio=0": "`tuning.clean_ratio` to be a number in (0, 1], but got 0",
    "tuning.clean_ratio=2": "`tuning.clean_ratio` to be a number in (0, 1], but got 2",
    "tuning.clean_ratio=abc": "in (0, 1], but got 'abc'",
    "tuning.clean_ratio=0.001": "rounds to none",
    "tuning.clean_ratio=0.017": "1 clean images",
    "tuning.optimizer.lr=abc": "`tuning.optimizer.lr`",
    "tuning.optimizer.lr=-1": "Invalid learning rate",
    "tuning.scheduler.T_max=abc": "`tuning.scheduler.T_max` to be a whole number",
    "tuning.scheduler_interval=foo": "epoch, step, but got 'foo'",
    "tuning.augment=foo": "`tuning.augment` to be true or false",
    "checkpoint=missing.pt": "missing.pt: there is no such file",
    "data.image_size=abc": "`data.image_size` to be a whole number, but got 'abc'",
    "data.num_classes=1": "of 2 or more, but got 1",
    "model.width=abc": "`model.width` to be a whole number, but got 'abc'",
    "val_images=0": "`val_images` to be a whole number of 1 or more, but got 0",
    "seed=abc": "`seed` to be a whole number from 0 to 4294967295, but got 'abc'",
    "seed=-1": "but got -1",
    "seed=1.5": "but got 1.5",
    "seed=4294967296": "but got 4294967296",
    "resume=missing.ckpt": "there is no file missing.ckpt",
}


@pytest.mark.parametrize(("override", "message"), BAD.items())
def test_a_bad_value_is_refused_before_any_training(
    override: str, message: str, start: Start, tmp_path: Path
) -> None:
    run = start(override)
    with pytest.raises((ValueError, OSError)) as caught:
        run_pipeline(run)
    text = " ".join(str(caught.value).split())
    assert message in text
    assert len(text) < 500
    assert not (tmp_path / "store" / "models").exists()
    assert not list(tmp_path.rglob("*.ckpt"))
    assert not (run.folder / "results.json").exists()


@pytest.mark.parametrize("data", ["image_folder", "npz"])
def test_a_root_that_is_missing_or_not_given_is_named(
    data: str, start: Start, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"`data\.root` to be set"):
        run_pipeline(start(f"data={data}"))
    with pytest.raises(OSError, match="nowhere"):
        run_pipeline(start(f"data={data}", f"data.root={tmp_path / 'nowhere'}"))


def test_a_task_without_a_backdoored_model_leaves_no_folder(start: Start) -> None:
    run = start("attack.target_label=99")
    with pytest.raises(ValueError, match="target_label"):
        run_pipeline(run)
    assert not run.folder.exists()


def test_compares_with_annotations_of_every_kind() -> None:
    target = f"{__name__}.Example"
    for good in (
        {"whole": 1},
        {"number": 1},
        {"number": None},
        {"names": ["a"]},
        {"names": None},
        {"anything": {"a": 1}},
        {"unknown": 1},
        {"sloppy": None},
    ):
        check_arguments(OmegaConf.create({"_target_": target, **good}))
    for bad in (
        {"whole": True},
        {"whole": 1.0},
        {"whole": "1"},
        {"number": "nan"},
        {"number": False},
        {"names": "abc"},
        {"flag": 1},
        {"flag": None},
        {"whole": "???"},
    ):
        with pytest.raises(ValueError, match=f"`{next(iter(bad))}` to be"):
            check_arguments(OmegaConf.create({"_target_": target, **bad}))
    check_arguments(OmegaConf.create({"_target_": target, "whole": "abc"}), given=("whole",))
    whole = OmegaConf.create({"attack": {"_target_": target, "save_examples": True}})
    with pytest.raises(ValueError, match=r"`attack.save_examples` under.*`report.examples`"):
        check_arguments(whole.attack)


class Example:
    def __init__(
        self,
        whole: int = 0,
        number: float | None = None,
        names: list[str] | None = None,
        flag: bool = False,
        anything: object = None,
        sloppy: int = None,  # type: ignore[assignment]  # noqa: RUF013
    ) -> None:
        """Somebody else's class."""
