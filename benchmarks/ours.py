"""This project, as its command line composes it: the same parts, through Lightning's Trainer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from benchmarks.setting import (
    ALPHA,
    CROP_PADDING,
    MEAN,
    NUM_CLASSES,
    OPACITY,
    POISON_RATIO,
    STD,
    TARGET,
    Clock,
    Setting,
)
from fst_lightning.configuration import conf_folder
from fst_lightning.data import BackdoorDataModule
from fst_lightning.defenses import NoDefense
from fst_lightning.modules import PurificationModule
from fst_lightning.pipelines import Run
from fst_lightning.pipelines.backdoored import make_card, train_backdoored
from fst_lightning.pipelines.build.parts import (
    make_attack,
    make_defense,
    make_module,
    make_source,
    make_trainer,
)
from fst_lightning.pipelines.measure.score import score

BLENDED = (
    "attack=blended",
    f"attack.poison_ratio={POISON_RATIO}",
    f"attack.target_label={TARGET}",
    f"attack.blend_alpha={OPACITY}",
)


class StepClock(L.Callback):
    """Takes the time of the steps, as a callback of a user's would."""

    current: Clock | None = None

    def on_train_batch_end(self, *_: Any) -> None:
        """Take note of a finished step."""
        if self.current is not None:
            self.current.step()


def train(setting: Setting, attack_lines: Sequence[str] = BLENDED) -> float:
    """Train on poisoned images; images per second."""
    clock = StepClock.current = Clock(setting)
    with TemporaryDirectory() as scratch:
        run = _run("train", setting, Path(scratch), attack_lines)
        source, attack = make_source(run), make_attack(run)
        data = BackdoorDataModule(source, attack)
        data.setup()
        net = _network(setting)
        card = make_card(run, source, attack)
        train_backdoored(run, net, source, attack, card, Path(scratch) / "work")
    return clock.rate


def tune(setting: Setting) -> float:
    """Tune by FST on clean images; images per second."""
    clock = StepClock.current = Clock(setting)
    with TemporaryDirectory() as scratch:
        run = _run("purify", setting, Path(scratch))
        data = _data(run, setting)
        module = make_module(run, _network(setting), make_defense(run), data)
        trainer = make_trainer(run, "purify", 1, Path(scratch) / "work")
        trainer.fit(module, data)
    return clock.rate


def evaluate(setting: Setting) -> float:
    """Count hits on all clean and all triggered test images; images per second."""
    with TemporaryDirectory() as scratch:
        run = _run("purify", setting, Path(scratch))
        data = _data(run, setting)
        module = PurificationModule(
            _network(setting), NoDefense(), attack=data.measured, mean=MEAN, std=STD
        )
        trainer = make_trainer(run, "purify", 1, Path(scratch))
        started = time.perf_counter()
        result = score(trainer, module, data)
        seconds = time.perf_counter() - started
    assert result.ca is not None
    return (len(data.data.test) + len(data.triggered_rows)) / seconds


def _network(setting: Setting) -> nn.Module:
    return setting.network().to(memory_format=torch.channels_last)


def _data(run: Run, setting: Setting) -> BackdoorDataModule:
    data = BackdoorDataModule(
        make_source(run),
        make_attack(run),
        purpose="purify",
        batch_size=setting.batch_size,
        clean_ratio=1.0,
        seed=run.cfg.seed,
    )
    data.setup()
    return data


def _run(task: str, setting: Setting, folder: Path, attack: Sequence[str] = BLENDED) -> Run:
    """The configuration of a user who sets what the contestants share, and leaves the rest."""
    overrides = [
        *shared_overrides(setting, attack),
        "training.max_epochs=1",
        f"training.batch_size={setting.batch_size}",
        "trainer.limit_val_batches=0",
        f"paths.store={folder}",
        "+callbacks.clock._target_=benchmarks.ours.StepClock",
    ]
    if task == "purify":
        overrides += [
            "defense=fst",
            f"defense.alpha={ALPHA}",
            "tuning.max_epochs=1",
            f"tuning.batch_size={setting.batch_size}",
        ]
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        cfg = compose(task, overrides)
    cfg.logger.csv.save_dir = str(folder)
    name = attack[0].removeprefix("attack=")
    choices = {"data": "fake", "attack": name, "model": "resnet18", "defense": "fst"}
    return Run(cfg, choices, overrides, folder)


def shared_overrides(setting: Setting, attack: Sequence[str] = BLENDED) -> list[str]:
    """What all contestants share, as the command line says it."""
    return [
        *data_overrides(setting),
        *attack,
        "model=resnet18",
        f"model.width={setting.width}",
        f"trainer.accelerator={'gpu' if setting.device == 'cuda' else 'cpu'}",
    ]


def data_overrides(setting: Setting) -> list[str]:
    """The generated images, as the command line says it."""
    return [
        "data=fake",
        f"data.num_classes={NUM_CLASSES}",
        f"data.num_train={setting.num_train}",
        f"data.num_test={setting.num_test}",
        f"data.mean={list(MEAN)}",
        f"data.std={list(STD)}",
        f"data.crop_padding={CROP_PADDING}",
        "data.horizontal_flip=true",
    ]
