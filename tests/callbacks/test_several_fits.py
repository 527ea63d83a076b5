"""A tuner leaves the module as it was, and a second fit keeps the original head as reference."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, Callback, LearningRateFinder
from lightning.pytorch.tuner.tuning import Tuner
from torch import Tensor, nn
from torch.optim import SGD

from fst_lightning.callbacks import DefenseCallback, FSTCallback
from fst_lightning.defenses import FST, FeatureExtractorTuning, FineTuning
from fst_lightning.modules import PurificationModule
from tests.callbacks.plain_loop import plain_fst, steps
from tests.callbacks.projects import (
    HEAD,
    Project,
    largest_difference,
    make_loader,
    make_net,
    make_trainer,
)

ALPHA, SEED = 0.3, 4
ORIGINAL = make_net().state_dict()["head.weight"]


def plain_sgd(parameters: Any) -> SGD:
    return SGD(parameters, lr=0.05)


class Tunable(Project):
    """Has the attributes that Lightning's tuners look for."""

    def __init__(self) -> None:
        super().__init__(make_optimizer=lambda parameters: SGD(parameters, lr=self.lr))
        self.lr = 0.05
        self.batch_size = 5

    def train_dataloader(self) -> Any:
        return make_loader(batch_size=self.batch_size)

    def val_dataloader(self) -> Any:
        return self.train_dataloader()


def tune(how: str, trainer: Any, module: Any) -> None:
    if how == "lr_find":
        Tuner(trainer).lr_find(module, num_training=5, update_attr=False)
    else:
        Tuner(trainer).scale_batch_size(module, max_trials=1, steps_per_trial=1)


def expected(epochs: int) -> nn.Module:
    batches = list(make_loader())
    return plain_fst(make_net(), "head", batches, plain_sgd, alpha=ALPHA, seed=SEED, epochs=epochs)


@pytest.mark.parametrize("how", ["lr_find", "scale_batch_size"])
def test_a_tuner_leaves_the_module_as_it_was(how: str, tmp_path: Path) -> None:
    project, callback = Tunable(), FSTCallback(ALPHA, "uniform", seed=SEED)
    trainer = make_trainer(callback, default_root_dir=tmp_path)
    tune(how, trainer, project)
    assert largest_difference(project.classifier, make_net()) == 0
    project.batch_size = 5
    trainer.fit(project)
    assert largest_difference(project.classifier, expected(1)) < 1e-6


@pytest.mark.parametrize(
    "finder",
    [
        lambda: LearningRateFinder(num_training_steps=5, update_attr=False),
        lambda: BatchSizeFinder(max_trials=1, steps_per_trial=1, init_val=5),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_finders_as_callbacks(finder: Any, first: bool, tmp_path: Path) -> None:
    project, callback = Tunable(), FSTCallback(ALPHA, "uniform", seed=SEED)
    callbacks: list[Callback] = [finder(), callback] if first else [callback, finder()]
    make_trainer(*callbacks, default_root_dir=tmp_path).fit(project)
    original = callback.state_dict()["defense"]["original_weight"]
    assert torch.equal(original, ORIGINAL)
    norm = float(project.classifier.get_parameter("head.weight").detach().norm())
    assert norm == pytest.approx(float(ORIGINAL.norm()), rel=1e-5)
    if isinstance(callbacks[0 if first else 1], LearningRateFinder):
        assert largest_difference(project.classifier, expected(1)) < 1e-6


@pytest.mark.parametrize("how", ["lr_find", "scale_batch_size"])
def test_a_tuner_leaves_the_network_of_a_purification_module(how: str, tmp_path: Path) -> None:
    class Module(PurificationModule):
        lr, batch_size = 0.05, 5

        def train_dataloader(self) -> Any:
            return make_loader(batch_size=self.batch_size)

        def val_dataloader(self) -> Any:
            return self.train_dataloader()

    module = Module(make_net(), FST(ALPHA, "uniform"), plain_sgd, seed=SEED)
    trainer = make_trainer(default_root_dir=tmp_path)
    tune(how, trainer, module)
    assert largest_difference(module.net, make_net()) == 0
    module.batch_size = 5
    trainer.fit(module)
    assert largest_difference(module.net, expected(1)) < 1e-6


def callback_fits(project: Project, *callbacks: FSTCallback) -> None:
    for callback in callbacks:
        make_trainer(callback).fit(project, make_loader())


def test_two_fits_are_one_long_one() -> None:
    """Without momentum, two fits of one epoch are one of two epochs."""
    project, callback = Project(make_optimizer=plain_sgd), FSTCallback(ALPHA, "uniform", seed=SEED)
    callback_fits(project, callback, callback)
    assert largest_difference(project.classifier, expected(2)) < 1e-6


def test_two_fits_of_a_purification_module_are_one_long_one() -> None:
    module = PurificationModule(make_net(), FST(ALPHA, "uniform"), plain_sgd, seed=SEED)
    make_trainer().fit(module, make_loader())
    make_trainer().fit(module, make_loader())
    assert largest_difference(module.net, expected(2)) < 1e-6


@pytest.mark.parametrize("copied", [False, True])
def test_another_callback_starts_anew_with_the_same_reference(copied: bool) -> None:
    """The record goes with a copy of the network, too."""
    project = Project(make_optimizer=plain_sgd)
    callback_fits(project, FSTCallback(ALPHA, "uniform", seed=9))
    between = copy.deepcopy(project.classifier)
    if copied:
        project = Project(copy.deepcopy(project.classifier), plain_sgd)
    again = FSTCallback(ALPHA, "uniform", seed=SEED)
    callback_fits(project, again)
    assert torch.equal(again.state_dict()["defense"]["original_weight"], ORIGINAL)
    plain = plain_fst(
        between,
        "head",
        list(make_loader()),
        plain_sgd,
        alpha=ALPHA,
        seed=SEED,
        original=ORIGINAL,
    )
    assert largest_difference(project.classifier, plain) < 1e-6


def test_another_defense_knows_the_original_head() -> None:
    project = Project(make_optimizer=plain_sgd)
    make_trainer(DefenseCallback(FineTuning())).fit(project, make_loader())
    callback = FSTCallback(ALPHA)
    callback_fits(project, callback)
    assert torch.equal(callback.state_dict()["defense"]["original_weight"], ORIGINAL)


class Interrupt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("interrupted")


@pytest.mark.parametrize("step", [0, 3])
def test_a_fit_after_an_interrupted_one_goes_on(step: int) -> None:
    project, callback = Project(make_optimizer=plain_sgd), FSTCallback(ALPHA, "uniform", seed=SEED)
    with pytest.raises(RuntimeError, match="interrupted"):
        make_trainer(callback, Interrupt(step)).fit(project, make_loader())
    if step == 0:  # nothing was tuned: the module is what it was
        assert largest_difference(project.classifier, make_net()) == 0
    make_trainer(callback).fit(project, make_loader())
    batches = list(make_loader())
    plain = plain_fst(
        make_net(), "head", batches[:step], plain_sgd, alpha=ALPHA, seed=SEED, epochs=1
    )
    if step == 0:
        plain = expected(1)
    else:
        weight = plain.get_parameter("head.weight")
        optimizer = plain_sgd(plain.parameters())
        plain = steps(plain, weight, batches, optimizer, ORIGINAL, ALPHA, 1)
    assert largest_difference(project.classifier, plain) < 1e-6


def test_backdoored_weights_that_are_loaded_again_start_anew() -> None:
    project, callback = Project(make_optimizer=plain_sgd), FSTCallback(ALPHA, "uniform", seed=SEED)
    callback_fits(project, callback)
    project.classifier.load_state_dict(make_net().state_dict())
    callback_fits(project, callback)
    assert largest_difference(project.classifier, expected(1)) < 1e-6


def test_a_head_that_changed_between_two_purifications_is_refused() -> None:
    project, callback = Project(make_optimizer=plain_sgd), FSTCallback(ALPHA)
    callback_fits(project, callback)
    project.classifier.load_state_dict(make_net(seed=8).state_dict())
    before = copy.deepcopy(project.state_dict())
    with pytest.raises(ValueError, match=r"classifier\.head.*has changed since"):
        callback_fits(project, callback)
    assert all(torch.equal(before[name], value) for name, value in project.state_dict().items())


def test_a_rounded_head_is_still_the_one_that_was_left() -> None:
    project, callback = Project(make_optimizer=plain_sgd), FSTCallback(ALPHA, "uniform", seed=SEED)
    callback_fits(project, callback)
    project.to(torch.bfloat16).float()
    callback_fits(project, callback)
    assert torch.equal(callback.state_dict()["defense"]["original_weight"], ORIGINAL)


def test_a_fit_without_steps_changes_nothing_and_says_so() -> None:
    project, callback = Project(), FSTCallback(ALPHA)
    with pytest.warns(UserWarning, match="the fit took no step"):
        make_trainer(callback, max_steps=0).fit(project, make_loader())
    assert largest_difference(project.classifier, make_net()) == 0
    module = PurificationModule(make_net(), FST(ALPHA))
    with pytest.warns(UserWarning, match="the fit took no step"):
        make_trainer(max_steps=0).fit(module, make_loader())
    assert largest_difference(module.net, make_net()) == 0


def test_a_head_that_does_not_train_is_left_as_it_was_drawn() -> None:
    """FE-tuning freezes a new head: that it does not move is no sign of a fit without steps."""
    project = Project(make_optimizer=plain_sgd)
    callback = DefenseCallback(FeatureExtractorTuning(), seed=SEED)
    make_trainer(callback).fit(project, make_loader())
    weight: Tensor = project.get_parameter(f"{HEAD}.weight")
    assert not torch.equal(weight, ORIGINAL)
