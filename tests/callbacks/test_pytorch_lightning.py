"""Projects that import ``pytorch_lightning`` get what those that import ``lightning`` get."""

from typing import Any

import lightning as L
import pytest
import pytorch_lightning as pl
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.attacks import BadNets
from fst_lightning.callbacks import (
    BackdoorMetricsCallback,
    BatchSizeAdvice,
    DefenseCallback,
    FiniteLoss,
    FSTCallback,
)
from fst_lightning.defenses import FineTuning
from tests.callbacks.projects import largest_difference, make_loader, make_net, sgd

PACKAGES: list[Any] = [L, pl]


class Plain:
    """Adds nothing."""


def make_project(package: Any, base: type = Plain) -> Any:
    """The same project, on either package."""

    class Project(base, package.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.classifier = make_net()

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.classifier(images)
            return logits

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return functional.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            """Measure nothing: the callback does."""

        def configure_optimizers(self) -> Any:
            return sgd(self.parameters())

    return Project()


def fit(package: Any, callbacks: list[Any], project: Any = None, **options: Any) -> tuple[Any, Any]:
    project = make_project(package) if project is None else project
    quiet = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = package.Trainer(callbacks=callbacks, **(quiet | options))
    trainer.fit(project, make_loader(), make_loader())
    return project, trainer


def small_badnets() -> BadNets:
    attack = BadNets(patch_size=1, target_label=1)
    images, labels = next(iter(make_loader(50, 50)))
    attack.prepare((images * 255).byte(), labels, 4, 0)
    return attack


@pytest.mark.parametrize(
    "make",
    [
        lambda: FSTCallback(0.3, seed=1),
        lambda: FSTCallback(0.3, "uniform", seed=1),
        lambda: DefenseCallback(FineTuning(project_norm=True)),
    ],
    ids=["fst", "uniform", "ft"],
)
@pytest.mark.parametrize(
    "options", [{}, {"accumulate_grad_batches": 4, "gradient_clip_val": 0.5}], ids=["plain", "clip"]
)
def test_same_weights_and_figures(make: Any, options: dict[str, Any]) -> None:
    results = []
    for package in PACKAGES:
        callbacks = [
            make(),
            BackdoorMetricsCallback(small_badnets()),
            FiniteLoss(),
            BatchSizeAdvice(),
        ]
        results.append(fit(package, callbacks, **options))
    (project, trainer), (other, other_trainer) = results
    assert largest_difference(project, other) == 0
    figures = {k: float(v) for k, v in trainer.callback_metrics.items()}
    assert {"val/ca", "val/asr", "val/ra"} <= figures.keys()
    assert figures == {k: float(v) for k, v in other_trainer.callback_metrics.items()}


@pytest.mark.parametrize("package", PACKAGES)
def test_network_built_in_configure_model(package: Any) -> None:
    class Late:
        classifier: Any

        def configure_model(self) -> None:
            if not isinstance(self.classifier, nn.Sequential):
                self.classifier = make_net()

    project = make_project(package, Late)
    project.classifier = None
    fit(package, [FSTCallback(0.3, seed=1)], project)
    expected, _ = fit(package, [FSTCallback(0.3, seed=1)])
    assert largest_difference(project, expected) == 0


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("name", ["FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"])
def test_sharding_strategies(package: Any, name: str) -> None:
    strategies = package.pytorch.strategies if package is L else package.strategies

    class Sharded(getattr(strategies, name)):  # type: ignore[misc]
        def __init__(self) -> None:
            """Ask for no package."""

    trainer: Any = type("Trainer", (), {"strategy": Sharded()})()
    with pytest.raises(Exception, match=r"whole weights.*Sharded"):
        FSTCallback().setup(trainer, make_project(package), "fit")


@pytest.mark.parametrize("package", PACKAGES)
def test_refusals(package: Any) -> None:
    project = make_project(package)
    project.classifier.get_submodule("conv").requires_grad_(False)
    with pytest.raises(Exception, match="in front of the head"):
        fit(package, [FSTCallback()], project)
    late = package.pytorch.callbacks if package is L else package.callbacks
    with pytest.raises(Exception, match="ModelPruning prunes it"):
        fit(package, [FSTCallback(), late.ModelPruning("l1_unstructured", amount=0.5)])


@pytest.mark.parametrize("package", PACKAGES)
def test_resume(package: Any, tmp_path: Any) -> None:
    checkpoint = (package.pytorch if package is L else package).callbacks.ModelCheckpoint(
        tmp_path, filename="first", save_top_k=-1
    )
    fit(package, [FSTCallback(0.3, seed=1), checkpoint], max_epochs=1, enable_checkpointing=True)
    whole, _ = fit(package, [FSTCallback(0.3, seed=1)])
    project = make_project(package)
    trainer = package.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[FSTCallback(0.3, seed=1)],
    )
    trainer.fit(project, make_loader(), make_loader(), ckpt_path=str(tmp_path / "first.ckpt"))
    assert largest_difference(project, whole) < 1e-6
