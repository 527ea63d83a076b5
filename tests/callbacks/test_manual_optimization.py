"""Several optimizers under manual optimization, steps that don't happen, closures."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adam

from fst_lightning.callbacks import DefenseCallback, FSTCallback
from fst_lightning.defenses import FST, FineTuning
from tests.callbacks.projects import (
    Project,
    Spy,
    largest_difference,
    make_loader,
    make_net,
    make_tensors,
    make_trainer,
)

ALPHA = 0.3
ORIGINAL = make_net().state_dict()["head.weight"]


class Adversary(Project):
    """A generator perturbs images, a classifier learns from them: each has its optimizer."""

    def __init__(self, style: str = "plain", every: int = 1) -> None:
        super().__init__()
        self.automatic_optimization = False
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.generator = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.Linear(8, 48))
        self.style = style
        self.every = every

    def losses(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """How well the classifier does on perturbed images; the generator works against it."""
        perturbed = images + 0.1 * self.generator(images).reshape(images.shape)
        loss = functional.cross_entropy(self(perturbed), labels)
        return -loss, loss

    def training_step(self, batch: Any, batch_idx: int) -> None:
        images, labels = batch
        optimizers: Any = self.optimizers()
        for which, optimizer in enumerate(optimizers):
            if which == 1 and batch_idx % self.every:
                continue
            if self.style == "closure":

                def closure(which: int = which, optimizer: Any = optimizer) -> None:
                    optimizer.zero_grad()
                    self.manual_backward(self.losses(images, labels)[which])

                optimizer.step(closure=closure)
                continue
            if self.style == "toggle":
                self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(self.losses(images, labels)[which])
            optimizer.step()
            if self.style == "toggle":
                self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> Any:
        return [
            Adam(self.generator.parameters(), lr=0.01, eps=1e-3),
            SGD(self.classifier.parameters(), lr=0.05, momentum=0.9),
        ]


def by_hand(start: dict[str, Tensor], every: int) -> Adversary:
    """The same two players, trained by a plain loop."""
    project = Adversary()
    project.load_state_dict(start)
    optimizers = project.configure_optimizers()
    head = project.classifier.get_submodule("head")
    assert isinstance(head, nn.Linear)
    images, labels = make_tensors()
    for step, (x, y) in enumerate(zip(torch.split(images, 5), torch.split(labels, 5), strict=True)):
        for which in (0, 1):
            if which == 1 and step % every:
                continue
            optimizers[which].zero_grad()
            loss = project.losses(x, y)[which]
            if which == 1:
                loss = loss + ALPHA * (head.weight * ORIGINAL).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizers[which].step()
            if which == 1:
                with torch.no_grad():
                    head.weight *= ORIGINAL.norm() / head.weight.norm()
    return project


@pytest.mark.parametrize("style", ["plain", "toggle", "closure"])
@pytest.mark.parametrize("every", [1, 2])
def test_two_optimizers_equal_a_loop(style: str, every: int) -> None:
    project, spy = Adversary(style, every), Spy()
    callback = FSTCallback(ALPHA, "uniform", head="classifier.head")
    make_trainer(spy, callback).fit(project, make_loader())
    expected = by_hand(spy.first[0], every)
    assert largest_difference(project, expected) < 1e-6
    for weight in spy.weights:
        assert float(weight.norm()) == pytest.approx(float(ORIGINAL.norm()), rel=1e-5)


def test_steps_of_others_leave_the_head_alone() -> None:
    """Without a penalty, too, only the optimizer that owns the head makes it projected."""

    class Pretraining(Adversary):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizers: Any = self.optimizers()
            optimizers[0].zero_grad()
            self.manual_backward(self.losses(*batch)[0])
            optimizers[0].step()

    for callback in (
        FSTCallback(0.0, "uniform", head="classifier.head"),
        FSTCallback(ALPHA, "uniform", head="classifier.head"),
        DefenseCallback(FineTuning(True, head="classifier.head")),
    ):
        project, spy = Pretraining(), Spy()
        tunes = isinstance(callback.defense, FST)
        refused = pytest.raises(ValueError, match="not purified") if tunes else nullcontext()
        with refused:
            make_trainer(spy, callback).fit(project, make_loader())
        assert torch.equal(spy.weights[-1], spy.first[0]["classifier.head.weight"])


class Skips(Project):
    """Skips batches that it does not like."""

    def __init__(self, skipped: set[int]) -> None:
        super().__init__()
        self.skipped = skipped

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        return None if batch_idx in self.skipped else super().training_step(batch, batch_idx)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_batches_without_a_loss_add_no_penalty(precision: Any) -> None:
    skipped = {0, 3, 9}
    project, spy = Skips(skipped), Spy()
    trainer = make_trainer(spy, FSTCallback(ALPHA, "uniform"), precision=precision)
    trainer.fit(project, make_loader())

    expected = Project()
    expected.load_state_dict(spy.first[0])
    optimizer = expected.configure_optimizers()
    head = expected.classifier.get_submodule("head")
    assert isinstance(head, nn.Linear)
    for step, (x, y) in enumerate(make_loader()):
        optimizer.zero_grad()
        if step not in skipped:
            with torch.autocast("cpu", enabled=precision == "bf16-mixed"):
                loss = functional.cross_entropy(expected(x), y)
                (loss + ALPHA * (head.weight * ORIGINAL).sum()).backward()
        optimizer.step()
        with torch.no_grad():
            head.weight *= ORIGINAL.norm() / head.weight.norm()
    assert largest_difference(project, expected) < 1e-6


def test_batches_without_a_loss_in_a_window() -> None:
    """A window of three with two losses gets two thirds of the penalty, as from a loss."""
    skipped = {1, 5, 6, 7, 8}
    project, spy = Skips(skipped), Spy()
    trainer = make_trainer(spy, FSTCallback(ALPHA, "uniform"), accumulate_grad_batches=3)
    trainer.fit(project, make_loader())

    expected = Project()
    expected.load_state_dict(spy.first[0])
    optimizer = expected.configure_optimizers()
    head = expected.classifier.get_submodule("head")
    assert isinstance(head, nn.Linear)
    batches = list(make_loader())
    for window in ([0, 1, 2], [3, 4, 5], [6, 7, 8], [9]):
        optimizer.zero_grad()
        for index in window:
            if index not in skipped:
                x, y = batches[index]
                loss = functional.cross_entropy(expected(x), y)
                ((loss + ALPHA * (head.weight * ORIGINAL).sum()) / 3).backward()
        optimizer.step()
        with torch.no_grad():
            head.weight *= ORIGINAL.norm() / head.weight.norm()
    assert largest_difference(project, expected) < 1e-6


def test_one_optimizer_with_parameter_groups() -> None:
    def groups(parameters: Any) -> SGD:
        first, *others = parameters
        return SGD([{"params": [first], "lr": 0.01}, {"params": others}], lr=0.1)

    project, spy = Project(make_optimizer=groups), Spy()
    make_trainer(spy, FSTCallback(ALPHA)).fit(project, make_loader())
    start = {k.removeprefix("classifier."): v for k, v in spy.first[0].items()}
    net = make_net()
    net.load_state_dict(start)
    head = net.get_submodule("head")
    assert isinstance(head, nn.Linear)
    for x, y in make_loader():
        loss = functional.cross_entropy(net(x), y) + ALPHA * (head.weight * ORIGINAL).sum()
        gradients = torch.autograd.grad(loss, list(net.parameters()))
        with torch.no_grad():
            for index, (p, g) in enumerate(zip(net.parameters(), gradients, strict=True)):
                p.sub_(g, alpha=0.1 if index else 0.01)
            head.weight *= ORIGINAL.norm() / head.weight.norm()
    assert largest_difference(project.classifier, net) < 1e-6
