"""A fit that cannot shift the features, or that tunes another head, is refused with the reason."""

from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BaseFinetuning,
    Callback,
    EMAWeightAveraging,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD

from fst_lightning.callbacks import DefenseCallback, FSTCallback
from fst_lightning.defenses import FST, LinearProbing
from fst_lightning.modules import PurificationModule
from tests.callbacks.projects import (
    Project,
    largest_difference,
    make_loader,
    make_net,
    make_trainer,
    sgd,
)

NO_FEATURES = "in front of the head"


def frozen_net() -> nn.Module:
    net = make_net()
    net.get_submodule("conv").requires_grad_(False)
    return net


class HeadOnly(Project):
    def configure_optimizers(self) -> Any:
        return sgd(self.classifier.get_submodule("head").parameters())


class Detached(Project):
    """Trains an auxiliary layer; the features reach the head without gradients."""

    def __init__(self, style: str = "detach") -> None:
        super().__init__()
        self.auxiliary = nn.Conv2d(3, 2, 1)
        self.style = style

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        *body, head = self.classifier.children()
        features = nn.Sequential(*body)
        if self.style == "no_grad":
            with torch.no_grad():
                inputs = features(images)
        else:
            inputs = features(images).detach()
        loss: Tensor = functional.cross_entropy(head(inputs), labels)
        own: Tensor = self.auxiliary(images).square().mean()
        return loss + own


class OthersTrain(Project):
    """The optimizer trains the head and a layer that nothing passes on the way to it."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Conv2d(3, 2, 1)

    def configure_optimizers(self) -> Any:
        return sgd(
            [*self.classifier.get_submodule("head").parameters(), *self.auxiliary.parameters()]
        )


@pytest.mark.parametrize(
    "make",
    [
        lambda: Project(frozen_net()),
        HeadOnly,
        Detached,
        lambda: Detached("no_grad"),
        OthersTrain,
    ],
    ids=["frozen", "head only", "detached", "no_grad", "others train"],
)
def test_features_that_cannot_change(make: Any) -> None:
    project, before = make(), make_net()
    with pytest.raises(MisconfigurationException, match=NO_FEATURES):
        make_trainer(FSTCallback(head="classifier.head")).fit(project, make_loader())
    assert largest_difference(project.classifier, before) == 0


def test_features_of_a_purification_module_that_cannot_change() -> None:
    module = PurificationModule(frozen_net(), FST())
    with pytest.raises(MisconfigurationException, match=NO_FEATURES):
        make_trainer().fit(module, make_loader())
    assert largest_difference(module.net, make_net()) == 0


def test_linear_probing_needs_no_features() -> None:
    project = HeadOnly()
    make_trainer(DefenseCallback(LinearProbing())).fit(project, make_loader())
    assert largest_difference(project.classifier, make_net()) > 1e-3


class Bodied(Project):
    """Named as ``BackboneFinetuning`` wants it."""

    def __init__(self) -> None:
        super().__init__(nn.Identity())
        net = make_net(batch_norm=True)
        self.backbone = nn.Sequential(*list(net.children())[:-1])
        self.head = net.get_submodule("head")

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(images))
        return logits

    def configure_optimizers(self) -> Any:
        return sgd([p for p in self.parameters() if p.requires_grad])


@pytest.mark.parametrize("epoch", [1, 2, 50])
def test_backbone_finetuning(epoch: int) -> None:
    callbacks: list[Callback] = [FSTCallback(), BackboneFinetuning(epoch, verbose=False)]
    trainer = make_trainer(*callbacks, max_epochs=2)
    if epoch < 2:
        trainer.fit(Bodied(), make_loader())
        return
    with pytest.raises(MisconfigurationException, match=rf"{NO_FEATURES}.*at epoch {epoch}"):
        trainer.fit(Bodied(), make_loader())


def test_a_fine_tuning_callback_that_never_unfreezes() -> None:
    class Never(BaseFinetuning):
        def freeze_before_training(self, pl_module: Any) -> None:
            self.freeze(pl_module.backbone, train_bn=False)

        def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
            """Do nothing."""

    with pytest.raises(MisconfigurationException, match=NO_FEATURES):
        make_trainer(FSTCallback(), Never()).fit(Bodied(), make_loader())


class LoadsInSetup(Project):
    def setup(self, stage: str) -> None:
        self.classifier.load_state_dict(make_net(seed=8).state_dict())


class LoadsOnFitStart(Project):
    def on_fit_start(self) -> None:
        self.classifier.load_state_dict(make_net(seed=8).state_dict())


class LoadsLater(Callback):
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        pl_module.classifier.load_state_dict(make_net(seed=8).state_dict())


@pytest.mark.parametrize("reinit", ["orthogonal", "uniform", "none"])
@pytest.mark.parametrize(
    ("make", "callbacks"),
    [(LoadsInSetup, []), (LoadsOnFitStart, []), (Project, [LoadsLater()])],
    ids=["setup", "on_fit_start", "callback"],
)
def test_weights_that_are_replaced_after_the_preparation(
    make: Any, callbacks: list[Callback], reinit: Any
) -> None:
    project = make()
    with pytest.raises(ValueError, match=r"replaced before the first step.*Load the weights"):
        make_trainer(FSTCallback(reinit=reinit), *callbacks).fit(project, make_loader())
    # What was loaded stays.
    assert largest_difference(project.classifier, make_net(seed=8)) == 0


def test_weights_of_a_purification_module_that_are_replaced() -> None:
    class Loads(Callback):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            pl_module.net.load_state_dict(make_net(seed=8).state_dict())

    with pytest.raises(ValueError, match="replaced before the first step"):
        make_trainer(Loads()).fit(PurificationModule(make_net(), FST()), make_loader())


@pytest.mark.parametrize(
    "average",
    [
        lambda: EMAWeightAveraging(decay=0.9),
        WeightAveraging,
        lambda: StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1),
    ],
    ids=["ema", "average", "swa"],
)
@pytest.mark.parametrize("first", [True, False])
def test_averaged_weights_are_projected(average: Any, first: bool) -> None:
    project, callback = Project(), FSTCallback()
    callbacks = [average(), callback] if first else [callback, average()]
    make_trainer(*callbacks, max_epochs=3).fit(project, make_loader())
    norm = float(project.classifier.get_parameter("head.weight").detach().norm())
    original = float(make_net().get_parameter("head.weight").detach().norm())
    assert norm == pytest.approx(original, rel=1e-6)


@pytest.mark.parametrize("first", [True, False])
def test_an_average_that_never_started_is_no_purification(first: bool) -> None:
    callback, late = FSTCallback(), EMAWeightAveraging(decay=0.9, update_starting_at_step=1000)
    callbacks = [late, callback] if first else [callback, late]
    with pytest.raises(ValueError, match="not purified"):
        make_trainer(*callbacks).fit(Project(), make_loader())


def test_a_learning_rate_of_zero_is_no_purification() -> None:
    project = Project(make_optimizer=lambda parameters: SGD(parameters, lr=0.0))
    with pytest.raises(ValueError, match=r"not purified.*learning rate is 0"):
        make_trainer(FSTCallback(project_norm=False)).fit(project, make_loader())


def test_pruning_of_the_head() -> None:
    pruning = ModelPruning("l1_unstructured", amount=0.3)
    with pytest.raises(MisconfigurationException, match=r"ModelPruning prunes it.*Leave the head"):
        make_trainer(FSTCallback(), pruning).fit(Project(), make_loader())


def test_pruning_of_other_layers() -> None:
    project = Project()
    conv = project.classifier.get_submodule("conv")
    pruning = ModelPruning("l1_unstructured", parameters_to_prune=[(conv, "weight")], amount=0.3)
    make_trainer(FSTCallback(), pruning, max_epochs=2).fit(project, make_loader())
    assert (conv.get_parameter("weight") == 0).any()


def test_steps_that_lightning_is_not_told_of() -> None:
    """Without its hook the penalty would silently be left out."""

    class Raw(Project):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            images, labels = batch
            optimizer: Any = self.optimizers(use_pl_optimizer=False)
            optimizer.zero_grad()
            torch.autograd.backward(functional.cross_entropy(self(images), labels))
            optimizer.step()

    with pytest.raises(MisconfigurationException, match=r"penalty was left out.*self\.optimizers"):
        make_trainer(FSTCallback()).fit(Raw(), make_loader())
