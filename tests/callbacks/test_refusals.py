"""What the callback can't do right it refuses, early and with the reason."""

from types import SimpleNamespace
from typing import Any, cast

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.optim import LBFGS, SGD

from fst_lightning.callbacks import DefenseCallback, FSTCallback
from fst_lightning.defenses import Defense, FineTuning
from tests.callbacks.projects import Project, make_loader, make_net, make_trainer


@pytest.mark.parametrize("strategy", [FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy])
def test_sharding_strategies(strategy: Any) -> None:
    # Their constructors ask for packages and devices; what counts is what they are.
    trainer = cast(L.Trainer, SimpleNamespace(strategy=object.__new__(strategy)))
    project = Project()
    before = {name: value.clone() for name, value in project.state_dict().items()}
    with pytest.raises(MisconfigurationException, match=rf"{strategy.__name__}.*shard.*'ddp'"):
        FSTCallback().setup(trainer, project, "fit")
    assert all(torch.equal(before[name], value) for name, value in project.state_dict().items())


@pytest.mark.parametrize("strategy", [FSDPStrategy, DeepSpeedStrategy])
def test_evaluation_runs_under_any_strategy(strategy: Any) -> None:
    trainer = cast(L.Trainer, SimpleNamespace(strategy=object.__new__(strategy)))
    FSTCallback().setup(trainer, Project(), "test")


def test_lbfgs() -> None:
    project = Project(make_optimizer=lambda parameters: LBFGS(parameters, lr=0.1))
    with pytest.raises(MisconfigurationException, match=r"LBFGS.*Use SGD or Adam"):
        make_trainer(FSTCallback()).fit(project, make_loader())


def test_defense_with_a_loss_of_its_own() -> None:
    class Distillation(Defense):
        def loss(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
            logits: Tensor = net(images)
            return logits.square().mean()

    with pytest.raises(MisconfigurationException, match=r"Distillation.*PurificationModule"):
        DefenseCallback(Distillation())


@pytest.mark.parametrize(
    "members",
    [
        {"study": lambda *_: None},
        {"begin_epoch": lambda *_: None},
        {"conclude": lambda *_: None},
        {"after_backward": lambda *_: None},
        {"before_step": lambda *_: None},
        {"held_out": 0.2},
        {"needs_poisoned_set": True},
    ],
    ids=lambda members: next(iter(members)),
)
def test_defense_that_needs_more_than_the_weights(members: dict[str, Any]) -> None:
    pruning = type("Pruning", (Defense,), members)
    with pytest.raises(MisconfigurationException, match=r"Pruning .*PurificationModule"):
        DefenseCallback(pruning())


@pytest.mark.parametrize("alpha", [0.2, 1])
def test_optimizer_without_the_head(alpha: float) -> None:
    class Features(Project):
        def configure_optimizers(self) -> Any:
            return SGD(self.classifier.get_submodule("conv").parameters(), lr=0.1)

    with pytest.raises(MisconfigurationException, match="none does"):
        make_trainer(FSTCallback(alpha)).fit(Features(), make_loader())


def test_no_optimizer_at_all() -> None:
    class Idle(Project):
        def configure_optimizers(self) -> Any:
            return None

    with pytest.raises(MisconfigurationException, match="none does"):
        make_trainer(FSTCallback()).fit(Idle(), make_loader())


def test_head_that_is_frozen() -> None:
    project = Project()
    project.classifier.get_submodule("head").requires_grad_(False)
    with pytest.raises(MisconfigurationException, match="frozen"):
        make_trainer(FSTCallback()).fit(project, make_loader())


def test_no_linear_layer() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 4), nn.Flatten())
    with pytest.raises(ValueError, match="no linear layer"):
        make_trainer(FSTCallback()).fit(Project(net), make_loader())


def test_wrong_name_lists_the_linear_layers() -> None:
    with pytest.raises(ValueError, match=r"(?s)`classifier\.haed`.*classifier\.head: 24 -> 4"):
        make_trainer(FSTCallback(head="classifier.haed")).fit(Project(), make_loader())


def test_two_candidates_are_listed() -> None:
    class TwoHeads(Project):
        def __init__(self) -> None:
            super().__init__(nn.Flatten())
            self.color = nn.Linear(48, 4)
            self.shape = nn.Linear(48, 4)

    with pytest.raises(ValueError, match=r"(?s)`color`, `shape`.*color: 48 -> 4.*shape: 48 -> 4"):
        make_trainer(FSTCallback()).fit(TwoHeads(), make_loader())


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_head_without_a_direction(value: float) -> None:
    net = make_net()
    nn.init.constant_(net.get_submodule("head").get_parameter("weight"), value)
    with pytest.raises(ValueError, match="head"):
        make_trainer(FSTCallback()).fit(Project(net), make_loader())


def test_network_that_is_built_too_late() -> None:
    class Late(L.LightningModule):
        def setup(self, stage: str) -> None:
            self.classifier = make_net()

        def training_step(self, batch: Any, batch_idx: int) -> None: ...

        def configure_optimizers(self) -> Any:
            return SGD(self.parameters(), lr=0.1)

    with pytest.raises(MisconfigurationException, match="__init__ or configure_model"):
        make_trainer(FSTCallback()).fit(Late(), make_loader())


def test_a_failed_start_thaws_what_it_froze() -> None:
    project = Project(make_optimizer=lambda parameters: LBFGS(parameters))
    with pytest.raises(MisconfigurationException):
        make_trainer(DefenseCallback(FineTuning())).fit(project, make_loader())
    assert all(parameter.requires_grad for parameter in project.parameters())


@pytest.mark.parametrize(
    "options", [{"alpha": -1.0}, {"alpha": float("inf")}, {"reinit": "kaiming"}]
)
def test_arguments(options: Any) -> None:
    with pytest.raises(ValueError, match="Expected"):
        FSTCallback(**options)
