"""After every optimizer step the head is back on its sphere, before anybody looks."""

import contextlib
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging

from fst_lightning.callbacks import DefenseCallback, FSTCallback
from fst_lightning.defenses import (
    FST,
    Defense,
    FeatureExtractorTuning,
    FineTuning,
    FineTuningInit,
    LinearProbing,
)
from tests.callbacks.projects import Project, Spy, make_loader, make_net, make_trainer

ORIGINAL = make_net().state_dict()["head.weight"]


@pytest.mark.parametrize("reinit", ["uniform", "orthogonal", "none"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("spy_first", [True, False])
def test_norm_after_every_step(reinit: Any, precision: Any, spy_first: bool) -> None:
    spy, callback = Spy(), FSTCallback(0.3, reinit)
    callbacks = [spy, callback] if spy_first else [callback, spy]
    make_trainer(*callbacks, precision=precision).fit(Project(), make_loader())
    assert len(spy.weights) == 10
    for weight in spy.weights:
        assert float(weight.norm()) == pytest.approx(float(ORIGINAL.norm()), rel=1e-5)


def test_anchor_is_the_head_that_came_in() -> None:
    callback = FSTCallback()
    make_trainer(callback).fit(Project(), make_loader())
    assert torch.equal(callback.state_dict()["defense"]["original_weight"], ORIGINAL)


def test_projects_per_step_and_not_per_batch() -> None:
    spy = Spy()
    trainer = make_trainer(spy, FSTCallback(0.3, "uniform"), accumulate_grad_batches=3)
    trainer.fit(Project(), make_loader())
    norms = [float(weight.norm() / ORIGINAL.norm()) for weight in spy.weights]
    assert abs(norms[0] - 1) > 1e-4  # two batches before the first step
    assert norms[0] == norms[1]
    assert all(norm == pytest.approx(1, rel=1e-5) for norm in norms[2:])


@pytest.mark.parametrize("project_norm", [True, False])
def test_projection_can_be_switched_off(project_norm: bool) -> None:
    spy = Spy()
    callback = FSTCallback(0.3, "orthogonal", project_norm)
    make_trainer(spy, callback).fit(Project(), make_loader())
    drift = abs(float(spy.weights[-1].norm() / ORIGINAL.norm()) - 1)
    assert (drift < 1e-5) == project_norm


@pytest.mark.parametrize("defense", [FineTuning(True), FineTuningInit(project_norm=True)])
def test_projection_without_a_penalty(defense: Any) -> None:
    spy = Spy()
    make_trainer(spy, DefenseCallback(defense)).fit(Project(), make_loader())
    for weight in spy.weights:
        assert float(weight.norm()) == pytest.approx(float(ORIGINAL.norm()), rel=1e-5)


@pytest.mark.parametrize("first", [True, False])
def test_weight_averaging_sees_projected_heads(first: bool) -> None:
    """An average that keeps nothing of the past is the last projected head, whatever the order."""
    average = EMAWeightAveraging(decay=0.0, update_starting_at_step=0)
    callbacks = [average, FSTCallback(0.3)] if first else [FSTCallback(0.3), average]
    project = Project()
    make_trainer(*callbacks).fit(project, make_loader())
    weight = project.state_dict()["classifier.head.weight"]
    assert float(weight.norm()) == pytest.approx(float(ORIGINAL.norm()), rel=1e-5)


def test_logs_penalty_angle_and_norm() -> None:
    trainer = make_trainer(FSTCallback(0.3))
    project = Project()
    trainer.fit(project, make_loader())
    weight = project.state_dict()["classifier.head.weight"]
    logged = trainer.callback_metrics
    inner = (weight * ORIGINAL).sum()
    assert float(logged["train/penalty"]) == pytest.approx(0.3 * float(inner), rel=1e-4)
    assert float(logged["train/head_norm"]) == pytest.approx(float(weight.norm()), rel=1e-5)
    expected = float(inner / weight.norm() / ORIGINAL.norm())
    assert float(logged["train/head_cosine"]) == pytest.approx(expected, rel=1e-4)


class HookCount(L.Callback):
    """Counts the hooks on the optimizers while they work, and keeps the optimizers."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.optimizers = list(trainer.optimizers)
        self.during = self.hooks()

    def hooks(self) -> int:
        return sum(len(o._optimizer_step_post_hooks) for o in self.optimizers)


class Failure(L.Callback):
    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("defense", [FST(0.3), LinearProbing(True), FeatureExtractorTuning()])
def test_fit_leaves_nothing_behind(defense: Defense, fails: bool) -> None:
    project = Project()
    frozen = project.get_parameter("classifier.conv.bias").requires_grad_(False)
    count = HookCount()
    callbacks = [DefenseCallback(defense), count, *([Failure()] if fails else [])]
    with pytest.raises(RuntimeError, match="memory") if fails else contextlib.nullcontext():
        make_trainer(*callbacks).fit(project, make_loader())
    assert count.during == 1
    assert count.hooks() == 0
    assert [p for p in project.parameters() if not p.requires_grad] == [frozen]


def test_two_fits_with_one_callback() -> None:
    """The second fit goes on from the first one, with the same reference head and fresh hooks."""
    project, callback, count = Project(), FSTCallback(0.3), HookCount()
    original = project.state_dict()["classifier.head.weight"].clone()
    make_trainer(callback).fit(project, make_loader())
    make_trainer(callback, count).fit(project, make_loader())
    assert torch.equal(callback.state_dict()["defense"]["original_weight"], original)
    assert count.during == 1
