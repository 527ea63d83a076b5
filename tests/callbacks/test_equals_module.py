"""The callback adds the penalty as a gradient, the module as a loss: the numbers are the same."""

from collections.abc import Callable, Iterable
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adam, AdamW, Optimizer

from fst_lightning.callbacks import FSTCallback
from fst_lightning.defenses import FST
from fst_lightning.modules import PurificationModule
from tests.callbacks.projects import (
    MakeOptimizer,
    Project,
    Spy,
    largest_difference,
    make_loader,
    make_net,
    make_tensors,
    make_trainer,
    sgd,
)

ALPHA = 0.3


def plain_sgd(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return SGD(parameters, lr=0.05)


def decayed_sgd(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return SGD(parameters, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01)


def adam(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return Adam(parameters, lr=0.01, eps=1e-3)


def fused_adamw(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return AdamW(parameters, lr=0.01, eps=1e-3, fused=True)


def fused_sgd(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return SGD(parameters, lr=0.05, momentum=0.9, fused=True)


def scaled(init_scale: float = 2.0**10) -> dict[str, Any]:
    scaler = torch.amp.GradScaler("cpu", init_scale=init_scale, growth_interval=3)
    return {"plugins": MixedPrecision("16-mixed", "cpu", scaler=scaler)}


def fit_both(
    make_optimizer: MakeOptimizer,
    options: Callable[[], dict[str, Any]],
    reinit: Any = "uniform",
    callbacks: Callable[[], list[L.Callback]] = list,
) -> tuple[nn.Module, nn.Module]:
    """Tune two equal networks on the same batches, one in each of the two ways."""
    module = PurificationModule(make_net(), FST(ALPHA, reinit), make_optimizer, seed=3)
    make_trainer(*callbacks(), max_epochs=2, **options()).fit(module, make_loader())
    project = Project(make_net(), make_optimizer)
    callback = FSTCallback(ALPHA, reinit, seed=3)
    make_trainer(callback, *callbacks(), max_epochs=2, **options()).fit(project, make_loader())
    moved = largest_difference(project.classifier, make_net())
    assert 1e-2 < moved < 1e2  # something was learned, nothing blew up
    return module.net, project.classifier


# 10 batches: a window of 3 leaves a last one of 1, a window of 4 one of 2.
CASES: dict[str, tuple[MakeOptimizer, Callable[[], dict[str, Any]], float]] = {
    "plain sgd": (plain_sgd, dict, 1e-6),
    "momentum": (sgd, dict, 1e-6),
    "nesterov and decay": (decayed_sgd, dict, 1e-6),
    "adam": (adam, dict, 1e-6),
    "fused adamw": (fused_adamw, dict, 1e-6),
    "fused sgd": (fused_sgd, dict, 1e-6),
    "clip norm": (sgd, lambda: {"gradient_clip_val": 0.5}, 1e-6),
    "clip value": (
        sgd,
        lambda: {"gradient_clip_val": 0.02, "gradient_clip_algorithm": "value"},
        1e-6,
    ),
    "accumulate 3": (sgd, lambda: {"accumulate_grad_batches": 3}, 1e-6),
    "accumulate 4": (sgd, lambda: {"accumulate_grad_batches": 4}, 1e-6),
    "accumulate, adam": (adam, lambda: {"accumulate_grad_batches": 3}, 1e-6),
    "accumulate and clip": (
        sgd,
        lambda: {"accumulate_grad_batches": 3, "gradient_clip_val": 0.2},
        1e-6,
    ),
    "limited batches": (
        sgd,
        lambda: {"accumulate_grad_batches": 3, "limit_train_batches": 7},
        1e-6,
    ),
    "bf16": (sgd, lambda: {"precision": "bf16-mixed"}, 1e-6),
    # One ulp of float32 can flip a rounding to bf16.
    "bf16, accumulate": (
        sgd,
        lambda: {"precision": "bf16-mixed", "accumulate_grad_batches": 3},
        1e-3,
    ),
    "bf16, clip": (sgd, lambda: {"precision": "bf16-mixed", "gradient_clip_val": 0.5}, 1e-3),
    "float64": (sgd, lambda: {"precision": "64-true"}, 1e-6),
    "fp16": (sgd, scaled, 1e-6),
    "fp16, adam": (adam, scaled, 1e-6),
    "fp16, skipped steps": (sgd, lambda: scaled(2.0**24), 1e-6),
    "fp16, clip": (sgd, lambda: scaled() | {"gradient_clip_val": 0.5}, 1e-3),
    "fp16, accumulate": (sgd, lambda: scaled() | {"accumulate_grad_batches": 3}, 1e-3),
    "fp16, fused adamw": (fused_adamw, scaled, 1e-6),
    "fp16, fused sgd": (fused_sgd, scaled, 1e-6),
    "fp16, fused sgd, accumulate": (
        fused_sgd,
        lambda: scaled() | {"accumulate_grad_batches": 3},
        1e-3,
    ),
    # Not SGD: torch leaves its momentum undefined if the first fused step is skipped.
    "fp16, fused adamw, skipped steps": (fused_adamw, lambda: scaled(2.0**24), 1e-6),
}


@pytest.mark.parametrize("case", CASES)
def test_callback_equals_module(case: str) -> None:
    make_optimizer, options, tolerance = CASES[case]
    module, project = fit_both(make_optimizer, options)
    assert largest_difference(module, project) < tolerance


def test_orthogonal_head_is_the_same_in_both() -> None:
    module, project = fit_both(sgd, dict, reinit="orthogonal")
    assert largest_difference(module, project) < 1e-6


def test_without_reinitialisation_both_are_the_same() -> None:
    module, project = fit_both(sgd, dict, reinit="none")
    assert largest_difference(module, project) < 1e-6


def test_changing_accumulation_windows() -> None:
    module, project = fit_both(
        sgd, dict, callbacks=lambda: [GradientAccumulationScheduler({0: 3, 1: 4})]
    )
    assert largest_difference(module, project) < 1e-6


@pytest.mark.parametrize("reinit", ["uniform", "orthogonal"])
def test_seed_none_draws_the_same_head_from_the_global_seed(reinit: Any) -> None:
    heads = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        project, spy = Project(), Spy()
        make_trainer(FSTCallback(reinit=reinit), spy).fit(project, make_loader())
        heads.append(spy.first[0]["classifier.head.weight"])
    torch.manual_seed(7)
    module, spy = PurificationModule(make_net(), FST(reinit=reinit)), Spy("net.head")
    make_trainer(spy).fit(module, make_loader())
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert torch.equal(heads[0], spy.first[0]["net.head.weight"])


def published_algorithm(
    net: nn.Sequential, original: Tensor, images: Tensor, labels: Tensor, steps: int
) -> None:
    """Feature shift tuning by hand, with gradient descent written out."""
    norm = float(original.norm())
    for step in range(steps):
        rows = slice(5 * (step % 10), 5 * (step % 10) + 5)
        head = net.get_submodule("head")
        assert isinstance(head, nn.Linear)
        fitted = functional.cross_entropy(net(images[rows]), labels[rows])
        loss = fitted + ALPHA * (head.weight * original).sum()
        gradients = torch.autograd.grad(loss, list(net.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(net.parameters(), gradients, strict=True):
                parameter.sub_(gradient, alpha=0.05)
            head.weight *= norm / head.weight.norm()


def test_hundred_steps_of_the_published_algorithm() -> None:
    project, spy, incoming = Project(make_optimizer=plain_sgd), Spy(), make_net()
    original = incoming.state_dict()["head.weight"].clone()
    make_trainer(spy, FSTCallback(ALPHA, "uniform"), max_epochs=10).fit(project, make_loader())
    assert len(spy.weights) == 100

    start = {k.removeprefix("classifier."): v for k, v in spy.first[0].items()}
    bound = 24**-0.5
    assert not torch.equal(start["head.weight"], original)
    for name in ("head.weight", "head.bias"):
        assert float(start[name].abs().max()) <= bound
        assert float(start[name].abs().mean()) == pytest.approx(bound / 2, rel=0.6)
    # The features start where they came in; the first step sees a head that is not projected.
    assert torch.equal(start["conv.weight"], incoming.state_dict()["conv.weight"])
    assert abs(float(start["head.weight"].norm() / original.norm()) - 1) > 1e-3

    incoming.load_state_dict(start)
    published_algorithm(incoming, original, *make_tensors(), steps=100)
    assert largest_difference(project.classifier, incoming) < 1e-5
    cosine = functional.cosine_similarity(spy.weights[-1].flatten(), original.flatten(), dim=0)
    assert float(cosine) < -0.3  # the penalty did its work
