"""The other defenses of the paper as callbacks: equal to the module, and to what they promise."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.callbacks import DefenseCallback
from fst_lightning.defenses import (
    Defense,
    FeatureExtractorTuning,
    FineTuning,
    FineTuningInit,
    LinearProbing,
    NoDefense,
)
from fst_lightning.modules import PurificationModule
from tests.callbacks.projects import (
    Project,
    Spy,
    largest_difference,
    make_loader,
    make_net,
    make_trainer,
    sgd,
)

DEFENSES: dict[str, Callable[[], Defense]] = {
    "ft": FineTuning,
    "ft, projected": lambda: FineTuning(project_norm=True),
    "ft_init": FineTuningInit,
    "ft_init, projected": lambda: FineTuningInit(project_norm=True),
    "ft_init, orthogonal": lambda: FineTuningInit(reinit="orthogonal"),
    "fe_tuning": FeatureExtractorTuning,
    "lp": LinearProbing,
    "lp, projected": lambda: LinearProbing(project_norm=True),
    "none": NoDefense,
}


class Switching(Project):
    """Sets its modes itself, as many projects do."""

    def on_train_epoch_start(self) -> None:
        self.train()


def tuned(name: str, kind: Callable[..., Project] = Project, **options: Any) -> Project:
    project = kind(make_net(batch_norm=True))
    callback = DefenseCallback(DEFENSES[name](), seed=3)
    make_trainer(callback, max_epochs=2, **options).fit(project, make_loader(), make_loader())
    return project


@pytest.mark.parametrize("name", DEFENSES)
def test_callback_equals_module(name: str) -> None:
    module = PurificationModule(make_net(batch_norm=True), DEFENSES[name](), sgd, seed=3)
    make_trainer(max_epochs=2).fit(module, make_loader())
    assert largest_difference(module.net, tuned(name).classifier) < 1e-6


@pytest.mark.parametrize("kind", [Project, Switching])
@pytest.mark.parametrize("options", [{}, {"val_check_interval": 3}])
def test_linear_probing_moves_the_head_only(
    kind: Callable[..., Project], options: dict[str, Any]
) -> None:
    before = make_net(batch_norm=True).state_dict()
    after = tuned("lp", kind, **options).classifier.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved == {"head.weight", "head.bias"}


def test_fine_tuning_moves_batch_norm_too() -> None:
    """What linear probing keeps still would move."""
    before = make_net(batch_norm=True).state_dict()
    after = tuned("ft").classifier.state_dict()
    assert all(not torch.equal(value, after[name]) for name, value in before.items())


def test_linear_probing_is_logistic_regression_on_frozen_features() -> None:
    net = make_net(batch_norm=True).eval()
    head = net.get_submodule("head")
    assert isinstance(head, nn.Linear)
    optimizer = sgd(head.parameters())
    for _ in range(2):
        for images, labels in make_loader():
            with torch.no_grad():
                features: Tensor = net[:-1](images)
            optimizer.zero_grad()
            functional.cross_entropy(head(features), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    assert largest_difference(net, tuned("lp").classifier) < 1e-6


def test_feature_extractor_tuning_keeps_its_random_head() -> None:
    project, spy = Project(), Spy()
    make_trainer(spy, DefenseCallback(FeatureExtractorTuning())).fit(project, make_loader())
    before, after = make_net().state_dict(), project.classifier.state_dict()
    for name in ("head.weight", "head.bias"):
        assert torch.equal(spy.first[0][f"classifier.{name}"], after[name])
        assert not torch.equal(before[name], after[name])
    assert not torch.equal(before["conv.weight"], after["conv.weight"])


def test_frozen_weights_stay_out_of_filtered_optimizers() -> None:
    """Freezing comes before the optimizer is made."""
    sizes: list[int] = []

    class Filtering(Project):
        def configure_optimizers(self) -> Any:
            trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
            sizes.append(len(trained))
            return sgd(trained)

    for defense in (LinearProbing(), FeatureExtractorTuning(), FineTuning()):
        make_trainer(DefenseCallback(defense)).fit(Filtering(), make_loader())
    assert sizes == [2, 2, 4]


def test_a_defense_from_elsewhere() -> None:
    """Any penalty on any weights will do; here: decay towards the weights that came in."""

    class Proximal(Defense):
        def prepare(self, net: nn.Module, generator: torch.Generator) -> None:
            self.net = [net]
            self.before = [parameter.detach().clone() for parameter in net.parameters()]

        def penalty(self) -> Tensor:
            pairs = zip(self.net[0].parameters(), self.before, strict=True)
            return torch.stack([(now - then).square().sum() for now, then in pairs]).sum()

    module = PurificationModule(make_net(), Proximal(), sgd)
    make_trainer(accumulate_grad_batches=3).fit(module, make_loader())
    project = Project()
    make_trainer(DefenseCallback(Proximal()), accumulate_grad_batches=3).fit(project, make_loader())
    assert largest_difference(module.net, project.classifier) < 1e-6
