"""PurificationModule against loops in plain PyTorch, written from the paper."""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader, TensorDataset

from fst_lightning import PurificationModule
from fst_lightning.attacks import LIRA
from fst_lightning.defenses import (
    FST,
    CleanData,
    Defense,
    FeatureExtractorTuning,
    FineTuning,
    LinearProbing,
    NoDefense,
)
from fst_lightning.defenses.common.whole_set import accuracy
from tests import tiny

SEED = 11
ROWS = tiny.rows(80)
sgd = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9)
Parameters = list[nn.Parameter]


def published(
    net: nn.Module,
    *,
    alpha: float,
    epochs: int,
    batch_size: int,
    make_optimizer: Callable[[Parameters], torch.optim.Optimizer] = sgd,
    cosine: bool = True,
    clip: float | None = None,
    accumulate: int = 1,
) -> list[float]:
    """Feature shift tuning as published, on a net with a layer ``head``; returns ||W|| per step."""
    head, batches, norms = net.get_submodule("head"), tiny.Batches(ROWS, batch_size), []
    assert isinstance(head, nn.Linear)
    old = head.weight.detach().clone()
    bound = 1 / math.sqrt(head.in_features)
    generator = torch.Generator().manual_seed(SEED)
    nn.init.uniform_(head.weight, -bound, bound, generator=generator)
    nn.init.uniform_(head.bias, -bound, bound, generator=generator)
    parameters = list(net.parameters())
    optimizer = make_optimizer(parameters)
    rates = [group["lr"] for group in optimizer.param_groups]
    net.train()
    for epoch in range(epochs):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1 + math.cos(math.pi * epoch / epochs)) / 2 if cosine else rate
        for number, (images, labels) in enumerate(batches, start=1):
            loss = functional.cross_entropy(net(images.float() / 255), labels)
            loss = loss + alpha * (head.weight * old).sum()
            torch.autograd.backward(loss / accumulate)
            if number % accumulate and number < len(batches):
                continue
            if clip is not None:
                total = math.sqrt(
                    sum(float((p.grad**2).sum()) for p in parameters if p.grad is not None)
                )
                for parameter in parameters:
                    assert parameter.grad is not None
                    parameter.grad *= min(1.0, clip / total)
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                head.weight *= old.norm() / head.weight.norm()
            norms.append(float(head.weight.detach().norm()))
    return norms


def purified(
    folder: Path,
    defense: Defense,
    *,
    epochs: int,
    batch_size: int,
    optimizer: Any = sgd,
    cosine: bool = True,
    net: nn.Module | None = None,
    **options: Any,
) -> nn.Module:
    net = tiny.conv_net() if net is None else net
    schedule = functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs)
    module = PurificationModule(net, defense, optimizer, schedule if cosine else None, seed=SEED)
    tiny.trainer(folder, epochs, **options).fit(module, tiny.Batches(ROWS, batch_size))
    return net


def assert_same(net: nn.Module, other: nn.Module, tolerance: float) -> None:
    state, expected = net.state_dict(), other.state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(state[name], value, rtol=0, atol=tolerance), name


class Norms(L.Callback):
    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.norms.append(float(pl_module.get_parameter("net.head.weight").detach().norm()))


def test_a_hundred_steps_are_the_published_algorithm(tmp_path: Path) -> None:
    expected, norms = tiny.conv_net(), Norms()
    norm = float(expected.get_parameter("head.weight").detach().norm())
    loop = published(expected, alpha=0.2, epochs=20, batch_size=16)
    net = purified(
        tmp_path,
        FST(alpha=0.2, reinit="uniform"),
        epochs=20,
        batch_size=16,
        callbacks=[norms],
    )
    assert len(loop) == len(norms.norms) == 100
    assert_same(net, expected, 1e-6)
    assert norms.norms == pytest.approx([norm] * 100, rel=1e-5)
    # The comparison means something only where training went somewhere.
    assert not torch.allclose(
        net.get_parameter("conv1.weight"), tiny.conv_net().get_parameter("conv1.weight"), atol=0.05
    )


def test_the_first_forward_sees_the_head_as_it_was_drawn(tmp_path: Path) -> None:
    seen: list[Tensor] = []
    net = tiny.conv_net()
    head = net.get_submodule("head")
    assert isinstance(head, nn.Linear)
    head.register_forward_pre_hook(lambda *_: seen.append(head.weight.detach().clone()))
    purified(tmp_path, FST(reinit="uniform"), epochs=1, batch_size=16, net=net)
    bound = 1 / math.sqrt(12)
    generator = torch.Generator().manual_seed(SEED)
    drawn = torch.empty(4, 12).uniform_(-bound, bound, generator=generator)
    norm = tiny.conv_net().get_parameter("head.weight").detach().norm()
    assert torch.equal(seen[0], drawn)
    assert not torch.isclose(drawn.norm(), norm, rtol=1e-3)
    assert [float(weight.norm()) for weight in seen[1:]] == pytest.approx([float(norm)] * 4)


@pytest.mark.parametrize(
    ("make_optimizer", "clip", "accumulate"),
    [
        (functools.partial(torch.optim.Adam, lr=0.01), None, 1),
        (functools.partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1), 0.5, 2),
        (sgd, 0.3, 1),
        (sgd, None, 2),  # five batches an epoch: the last window is short
        (sgd, None, 3),
        (sgd, 0.3, 4),
    ],
)
def test_other_optimizers_clipping_and_accumulation(
    tmp_path: Path,
    make_optimizer: Callable[[Parameters], torch.optim.Optimizer],
    clip: float | None,
    accumulate: int,
) -> None:
    expected = tiny.conv_net()
    published(
        expected,
        alpha=0.3,
        epochs=4,
        batch_size=16,
        make_optimizer=make_optimizer,
        cosine=False,
        clip=clip,
        accumulate=accumulate,
    )
    net = purified(
        tmp_path,
        FST(alpha=0.3, reinit="uniform"),
        epochs=4,
        batch_size=16,
        optimizer=make_optimizer,
        cosine=False,
        gradient_clip_val=clip,
        accumulate_grad_batches=accumulate,
    )
    # Clipping by hand has no 1e-6 in its denominator; Adam divides by small numbers.
    assert_same(net, expected, 1e-6 if clip is None and make_optimizer is sgd else 1e-5)


@pytest.mark.parametrize(
    "defense", [FST(alpha=0, reinit="none", project_norm=False), FineTuning(), NoDefense()]
)
def test_without_its_parts_it_is_plain_fine_tuning_bit_for_bit(
    tmp_path: Path, defense: Defense
) -> None:
    plain = tiny.conv_net()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=5)
    batches = tiny.Batches(ROWS, 16)
    plain.train()
    for _ in range(5):
        for images, labels in batches:
            optimizer.zero_grad()
            torch.autograd.backward(functional.cross_entropy(plain(images.float() / 255), labels))
            optimizer.step()
        scheduler.step()
    assert_same(purified(tmp_path, defense, epochs=5, batch_size=16), plain, 0.0)


def test_a_network_that_came_in_evaluation_mode_is_trained(tmp_path: Path) -> None:
    net = purified(tmp_path, FineTuning(), epochs=1, batch_size=16, net=tiny.conv_net().eval())
    assert_same(net, purified(tmp_path, FineTuning(), epochs=1, batch_size=16), 0.0)


@pytest.mark.parametrize("validate", [False, True])
def test_linear_probing_in_the_module(tmp_path: Path, validate: bool) -> None:
    net = tiny.conv_net(dropout=0.5)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    module = PurificationModule(net, LinearProbing(), sgd, seed=SEED)
    # Validation in mid-epoch switches modes and back.
    options: dict[str, Any] = {"val_check_interval": 2} if validate else {}
    trainer = tiny.trainer(tmp_path, 3, **options)
    trainer.fit(
        module,
        tiny.Batches(ROWS, 16),
        tiny.Batches(ROWS, 16) if validate else None,
    )
    changed = {name for name, value in net.state_dict().items() if not value.equal(before[name])}
    assert changed == {"head.weight", "head.bias"}
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_linear_probing_is_logistic_regression_on_fixed_features(tmp_path: Path) -> None:
    net = tiny.conv_net().eval()
    features = nn.Sequential(*list(net.children())[:-1])
    head = nn.Linear(12, tiny.NUM_CLASSES)
    head.load_state_dict(net.get_submodule("head").state_dict())
    optimizer = torch.optim.SGD(head.parameters(), lr=0.05, momentum=0.9)
    batches = tiny.Batches(ROWS, 16)
    for _ in range(3):
        for images, labels in batches:
            with torch.no_grad():
                inputs = features(images.float() / 255)
            optimizer.zero_grad()
            torch.autograd.backward(functional.cross_entropy(head(inputs), labels))
            optimizer.step()
    tuned = purified(tmp_path, LinearProbing(), epochs=3, batch_size=16, cosine=False)
    assert_same(tuned.get_submodule("head"), head, 1e-6)


def test_fe_tuning_in_the_module(tmp_path: Path) -> None:
    bound, generator = 1 / math.sqrt(12), torch.Generator().manual_seed(SEED)
    drawn = torch.empty(4, 12).uniform_(-bound, bound, generator=generator)
    net = purified(tmp_path, FeatureExtractorTuning(), epochs=2, batch_size=16)
    assert torch.equal(net.get_parameter("head.weight"), drawn)
    assert not torch.equal(
        net.get_parameter("conv1.weight"), tiny.conv_net().get_parameter("conv1.weight")
    )


def test_frozen_parameters_are_not_given_to_the_optimizer(tmp_path: Path) -> None:
    module = PurificationModule(tiny.conv_net(), LinearProbing(), sgd)
    trainer = tiny.trainer(tmp_path)
    trainer.fit(module, tiny.Batches(ROWS, 16))
    (group,) = trainer.optimizers[0].param_groups
    assert [tuple(parameter.shape) for parameter in group["params"]] == [(4, 12), (4,)]


def test_without_a_seed_the_global_one_counts(tmp_path: Path) -> None:
    heads = []
    for seed in (3, 3, 4):
        net = tiny.conv_net()
        L.seed_everything(seed, verbose=False)
        module = PurificationModule(net, FeatureExtractorTuning())
        tiny.trainer(tmp_path).fit(module, tiny.Batches(ROWS, 40))
        heads.append(net.get_parameter("head.weight").detach().clone())
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


class OwnLoss(Defense):
    def loss(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        wanted = functional.one_hot(labels, tiny.NUM_CLASSES).float()
        return functional.mse_loss(net(images), wanted)


def test_a_defense_with_a_loss_of_its_own(tmp_path: Path) -> None:
    plain = tiny.conv_net()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9)
    plain.train()
    for images, labels in tiny.Batches(ROWS, 16):
        optimizer.zero_grad()
        wanted = torch.eye(tiny.NUM_CLASSES)[labels]
        torch.autograd.backward(((plain(images.float() / 255) - wanted) ** 2).mean())
        optimizer.step()
    net = purified(tmp_path, OwnLoss(), epochs=1, batch_size=16, cosine=False)
    assert_same(net, plain, 1e-7)


@pytest.mark.parametrize(("interval", "expected"), [("epoch", 0.5**3), ("step", 0.5**15)])
def test_the_schedule_steps_per_epoch_or_per_step(
    tmp_path: Path, interval: Any, expected: float
) -> None:
    schedule = functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)
    module = PurificationModule(tiny.conv_net(), FST(), sgd, schedule, interval)
    trainer = tiny.trainer(tmp_path, 3)
    trainer.fit(module, tiny.Batches(ROWS, 16))
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.05 * expected)


def test_the_default_optimizer_is_that_of_the_paper() -> None:
    module = PurificationModule(tiny.conv_net(), FST())
    optimizer = module.configure_optimizers()
    assert isinstance(optimizer, torch.optim.SGD)
    settings = optimizer.param_groups[0]
    assert (settings["lr"], settings["momentum"], settings["weight_decay"]) == (0.01, 0.9, 0)
    assert not settings["nesterov"]


@pytest.mark.parametrize(
    ("precision", "dtype", "tolerance"),
    [("bf16-true", torch.bfloat16, 4e-3), ("64-true", torch.float64, 1e-7)],
)
def test_weights_of_another_precision(
    tmp_path: Path, precision: str, dtype: torch.dtype, tolerance: float
) -> None:
    net = tiny.conv_net()
    norm = float(net.get_parameter("head.weight").detach().norm())
    module = PurificationModule(
        net, FST(reinit="uniform"), sgd, mean=(0.5,) * 3, std=(0.2,) * 3, crop_padding=1, seed=SEED
    )
    trainer = tiny.trainer(tmp_path, 2, precision=precision)
    trainer.fit(module, tiny.Batches(ROWS, 16), tiny.Batches(ROWS, 16))
    weight = net.get_parameter("head.weight").detach()
    assert weight.dtype == dtype
    assert float(weight.double().norm()) == pytest.approx(norm, rel=tolerance)
    assert 0 <= float(trainer.callback_metrics["val/ca"]) <= 1


def test_a_skipped_step_is_not_projected(tmp_path: Path) -> None:
    """What a gradient scaler does where it finds infinity: the optimizer's step never runs."""
    net = tiny.conv_net()
    module = PurificationModule(net, FST(reinit="uniform"), sgd, seed=SEED)
    trainer = tiny.trainer(tmp_path, callbacks=[SkipSteps()])
    with pytest.raises(ValueError, match="not purified"):
        trainer.fit(module, tiny.Batches(ROWS, 16))
    bound, generator = 1 / math.sqrt(12), torch.Generator().manual_seed(SEED)
    drawn = torch.empty(4, 12).uniform_(-bound, bound, generator=generator)
    assert torch.equal(net.get_parameter("head.weight").detach(), drawn)


class SkipSteps(L.Callback):
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        def only_backward(*_: Any, **arguments: Any) -> None:
            closure = arguments.get("closure") or next(a for a in _ if callable(a))
            closure()

        pl_module.optimizer_step = only_backward  # type: ignore[method-assign]


def run(
    folder: Path, defense: Defense, net: nn.Module, resume: Path | None = None, **options: Any
) -> None:
    clean = CleanData(ROWS.images, ROWS.labels)
    module = PurificationModule(net, defense, sgd, seed=SEED, clean=clean)
    trainer = tiny.trainer(folder, **{"max_epochs": 2, **options})
    trainer.fit(module, data_loader(), ckpt_path=resume, weights_only=True)


def test_every_place_has_its_turn(tmp_path: Path) -> None:
    defense = Recorder()
    run(tmp_path, defense, tiny.conv_net())
    step = ["loss", "penalty", "after_backward", "before_step", "after_step"]
    epochs = ["epoch 0", *step, *step, "epoch 1", *step, *step]
    assert defense.calls == ["prepare", "study", *epochs, "conclude", "finish"]
    assert not defense.modes["study"]
    assert not defense.modes["conclude"]
    assert defense.modes["epoch 0"]
    assert defense.modes["loss"]


def test_weights_are_put_back_after_every_backward_pass(tmp_path: Path) -> None:
    defense = Recorder()
    run(tmp_path, defense, tiny.conv_net(), accumulate_grad_batches=2, max_epochs=1)
    places = [name for name in defense.calls if name in ("after_backward", "before_step")]
    assert places == ["after_backward", "after_backward", "before_step"]


def test_gradients_are_changed_before_they_are_clipped(tmp_path: Path) -> None:
    class Scales(Defense):
        net: list[nn.Module]

        def prepare(self, net: nn.Module, generator: torch.Generator) -> None:
            self.net = [net]

        def before_step(self) -> None:
            for parameter in self.net[0].parameters():
                assert parameter.grad is not None
                parameter.grad *= 1e6

    net = tiny.conv_net()
    before = torch.cat([p.detach().flatten() for p in net.parameters()])
    options: dict[str, Any] = {"gradient_clip_val": 1.0, "limit_train_batches": 1}
    run(tmp_path, Scales(), net, max_epochs=1, **options)
    moved = torch.cat([p.detach().flatten() for p in net.parameters()]) - before
    assert float(moved.norm()) == pytest.approx(0.05, rel=1e-3)  # the rate times the bound


@pytest.mark.parametrize("place", ["study", "epoch 1"])
def test_no_steps_where_none_are_needed(tmp_path: Path, place: str) -> None:
    defense = Recorder(done_after=place)
    net, before = tiny.conv_net(), tiny.conv_net()
    run(tmp_path, defense, net, max_epochs=5)
    assert defense.calls.count("loss") == (0 if place == "study" else 2)
    assert defense.calls[-2:] == ["conclude", "finish"]
    same = all(map(torch.equal, net.state_dict().values(), before.state_dict().values()))
    assert same == (place == "study")


def test_a_resumed_run_does_not_study_again_and_ends_alike(tmp_path: Path) -> None:
    whole, resumed, defense = tiny.conv_net(), tiny.conv_net(), Masked()
    run(tmp_path, Masked(), whole, max_epochs=3)
    keep = ModelCheckpoint(tmp_path, filename="last", save_top_k=1)
    run(
        tmp_path,
        Masked(),
        tiny.conv_net(),
        max_epochs=1,
        enable_checkpointing=True,
        callbacks=[keep],
    )
    run(tmp_path, defense, resumed, tmp_path / "last.ckpt", max_epochs=3)
    assert not defense.studied
    assert len(defense.seen) == 5
    assert_same(resumed, whole, 0.0)
    assert resumed.state_dict().keys() == tiny.conv_net().state_dict().keys()


def data_loader() -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(ROWS.images, ROWS.labels), batch_size=40)


def test_it_is_finished_where_the_fit_fails(tmp_path: Path) -> None:
    class Fails(Masked):
        def loss(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
            raise RuntimeError("out of luck")

    net = tiny.conv_net()
    with pytest.raises(RuntimeError, match="out of luck"):
        run(tmp_path, Fails(), net)
    assert net.state_dict().keys() == tiny.conv_net().state_dict().keys()


def test_whole_set_work_moves_no_other_random_number(tmp_path: Path) -> None:
    class Gambles(Defense):
        def study(self, net: nn.Module, clean: CleanData, generator: torch.Generator) -> None:
            torch.rand(17)

        def begin_epoch(
            self, net: nn.Module, clean: CleanData, epoch: int, generator: torch.Generator
        ) -> None:
            torch.rand(3 + epoch)

    nets = [tiny.conv_net(dropout=0.5) for _ in range(2)]
    for net, defense in zip(nets, (Gambles(), Defense()), strict=True):
        L.seed_everything(1, verbose=False)
        clean = CleanData(ROWS.images, ROWS.labels)
        # Without a seed one stream of random numbers is used for all epochs.
        module = PurificationModule(net, defense, sgd, clean=clean)
        tiny.trainer(tmp_path, 2).fit(module, tiny.Batches(ROWS, 40))
    assert_same(nets[0], nets[1], 0.0)


@pytest.mark.parametrize("normalized", [False, True])
def test_clean_images_are_gathered_from_the_loader(tmp_path: Path, normalized: bool) -> None:
    defense = Recorder()
    options: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.2,) * 3} if normalized else {}
    module = PurificationModule(tiny.conv_net(), defense, sgd, seed=SEED, **options)
    tiny.trainer(tmp_path).fit(module, data_loader())
    clean = defense.clean
    assert clean is not None
    ((images, labels),) = clean.batches(80)
    expected = ROWS.images / 255
    assert torch.allclose(images, (expected - 0.5) / 0.2 if normalized else expected, atol=1e-5)
    assert torch.equal(labels, ROWS.labels)
    assert clean.unit.flatten().tolist() == pytest.approx([5 if normalized else 1] * 3)


def test_the_images_it_needs_are_asked_for() -> None:
    class Chooses(Defense):
        held_out = 0.2

    class Inspects(Defense):
        needs_poisoned_set = True

    clean = CleanData(ROWS.images, ROWS.labels)
    with pytest.raises(ValueError, match=r"held out from the steps, which Chooses"):
        PurificationModule(tiny.conv_net(), Chooses(), clean=clean)
    with pytest.raises(ValueError, match=r"as it was delivered, which Inspects"):
        PurificationModule(tiny.conv_net(), Inspects(), clean=clean)
    PurificationModule(tiny.conv_net(), Chooses(), clean=clean.split(0.2, torch.Generator()))


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_whole_set_work_in_another_precision(tmp_path: Path, precision: str) -> None:
    class Counts(Recorder):
        def conclude(self, net: nn.Module, clean: CleanData, generator: torch.Generator) -> None:
            self.accuracy = accuracy(net, clean)

    defense = Counts()
    run(tmp_path, defense, tiny.conv_net(), precision=precision, max_epochs=1)
    assert 0 <= defense.accuracy <= 1


@pytest.mark.parametrize("asks", [True, False])
def test_a_search_computes_in_the_precision_of_the_steps_if_it_may(
    tmp_path: Path, asks: bool
) -> None:
    class Searches(Defense):
        searches_in_bfloat16 = asks

        def begin_epoch(
            self, net: nn.Module, clean: CleanData, epoch: int, generator: torch.Generator
        ) -> None:
            images, _ = next(clean.batches(4))
            before = net(images)
            with torch.no_grad():
                net.get_parameter("head.bias").add_(1)
            # No stale copy of a weight that a search trains.
            assert torch.allclose(net(images), before + 1, atol=0.05)
            self.found = before.dtype

    defense = Searches()
    run(tmp_path, defense, tiny.conv_net().eval(), precision="bf16-mixed", max_epochs=1)
    assert defense.found == (torch.bfloat16 if asks else torch.float32)


class Recorder(Defense):
    """Writes down what is called."""

    def __init__(self, done_after: str = "") -> None:
        super().__init__()
        self.calls: list[str] = []
        self.modes: dict[str, bool] = {}
        self.done_after = done_after
        self.clean: CleanData | None = None

    def note(self, name: str, net: nn.Module | None = None) -> None:
        self.calls.append(name)
        if net is not None:
            self.modes[name] = net.training

    def prepare(self, net: nn.Module, generator: torch.Generator) -> None:
        self.note("prepare")

    def study(self, net: nn.Module, clean: CleanData, generator: torch.Generator) -> None:
        self.note("study", net)
        self.clean = clean

    def begin_epoch(
        self, net: nn.Module, clean: CleanData, epoch: int, generator: torch.Generator
    ) -> None:
        self.note(f"epoch {epoch}", net)

    def loss(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        self.note("loss", net)
        return super().loss(net, images, labels)

    def penalty(self) -> Tensor | None:
        self.note("penalty")
        return None

    def after_backward(self) -> None:
        self.note("after_backward")

    def before_step(self) -> None:
        self.note("before_step")

    def after_step(self) -> None:
        self.note("after_step")

    def conclude(self, net: nn.Module, clean: CleanData, generator: torch.Generator) -> None:
        self.note("conclude", net)

    def finish(self) -> None:
        self.note("finish")

    @property
    def done(self) -> bool:
        return self.done_after in self.calls


class Mask(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mask = nn.Parameter(torch.ones(4, 1))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


class Masked(Defense):
    """Trains a mask on the head, and keeps what it saw of the clean images."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.empty(0))
        self.studied = False
        self.masked: list[nn.Module] = []

    def prepare(self, net: nn.Module, generator: torch.Generator) -> None:
        head = net.get_submodule("head")
        parametrize.register_parametrization(head, "weight", Mask())
        self.masked = [head]

    def study(self, net: nn.Module, clean: CleanData, generator: torch.Generator) -> None:
        self.studied = True
        self.seen = clean.labels[torch.randperm(len(clean), generator=generator)[:5]]

    def begin_epoch(
        self, net: nn.Module, clean: CleanData, epoch: int, generator: torch.Generator
    ) -> None:
        with torch.no_grad():
            noise = torch.rand(12, generator=generator)
            net.get_parameter("bn2.bias").add_(0.1 * noise)

    def loss(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return super().loss(net, images, labels) * (1 + self.seen.float().mean())

    def finish(self) -> None:
        for head in self.masked:
            parametrize.remove_parametrizations(head, "weight")
        self.masked = []


def test_a_learned_trigger_is_not_trained_by_a_purification(tmp_path: Path) -> None:
    """DDP would wait for gradients that its parameters never get."""
    attack = LIRA()
    attack.prepare(tiny.images(2), tiny.labels(2), tiny.NUM_CLASSES, seed=0)
    module = PurificationModule(tiny.conv_net(), FineTuning(), attack=attack)
    data = tiny.rows(16)
    loader = DataLoader(TensorDataset(data.images, data.labels), batch_size=8)
    before = [parameter.detach().clone() for parameter in attack.parameters()]
    tiny.trainer(tmp_path).fit(module, loader)
    assert before
    assert not any(parameter.requires_grad for parameter in attack.parameters())
    pairs = zip(before, attack.parameters(), strict=True)
    assert all(torch.equal(old, new) for old, new in pairs)
