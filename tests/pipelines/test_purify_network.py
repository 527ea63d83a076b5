"""`purify(net, loader, defense)` in Python."""

import copy
import functools
import itertools
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from fst_lightning import PurificationModule, PurifyResult, purify
from fst_lightning.defenses import (
    FST,
    AdversarialNeuronPruning,
    ChannelLipschitzPruning,
    CleanData,
    DatasetDefense,
    Defense,
    FineTuning,
    LinearProbing,
    NeuralCleanse,
    NoDefense,
    PoisonedData,
)
from fst_lightning.models import small_resnet
from tests import tiny

Pairs = DataLoader[tuple[Tensor, ...]]


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return small_resnet(3, width=4)


@pytest.fixture
def loader() -> Pairs:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(24, 3, 8, 8, generator=generator)
    return DataLoader(TensorDataset(images, torch.arange(24) % 3), batch_size=8)


def same(one: nn.Module, other: nn.Module) -> bool:
    state = other.state_dict()
    return all(torch.equal(value, state[name]) for name, value in one.state_dict().items())


def test_purifies_a_copy(net: nn.Module, loader: Pairs) -> None:
    before, training = copy.deepcopy(net), net.training
    purified = purify(net, loader, FST(alpha=0.1), max_epochs=2, accelerator="cpu")
    assert same(net, before)
    assert net.training == training
    assert purified is not net
    assert type(purified) is type(net)
    assert not same(purified, net)
    assert not purified.training
    assert all(parameter.requires_grad for parameter in purified.parameters())


def test_is_what_the_module_does_by_hand(net: nn.Module, loader: Pairs, tmp_path: Path) -> None:
    by_hand = copy.deepcopy(net)
    module = PurificationModule(
        by_hand,
        FST(alpha=0.1),
        functools.partial(torch.optim.SGD, lr=0.02, momentum=0.9),
        functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=2),
        seed=5,
    )
    tiny.trainer(tmp_path, max_epochs=2).fit(module, loader)
    purified = purify(net, loader, FST(alpha=0.1), max_epochs=2, lr=0.02, seed=5, accelerator="cpu")
    assert same(purified, by_hand)


def test_the_seed_decides(net: nn.Module, loader: Pairs) -> None:
    seeded = functools.partial(purify, net, loader, max_epochs=1, accelerator="cpu")
    first, again = seeded(FST(), seed=1), seeded(FST(), seed=1)
    assert same(first, again)
    assert not same(first, seeded(FST(), seed=2))


def test_takes_an_optimizer_a_schedule_and_any_iterable(net: nn.Module) -> None:
    batches = [(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])) for _ in range(2)]
    purified = purify(
        net,
        batches,
        FineTuning(),
        max_epochs=1,
        optimizer=functools.partial(torch.optim.Adam, lr=1e-3),
        scheduler=functools.partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0),
        accelerator="cpu",
        precision="bf16-mixed",
    )
    assert all(parameter.dtype == torch.float32 for parameter in purified.parameters())
    assert all(bool(torch.isfinite(value).all()) for value in purified.state_dict().values())


def test_other_defenses(net: nn.Module, loader: Pairs) -> None:
    probed = purify(net, loader, LinearProbing(), max_epochs=1, accelerator="cpu")
    changed = {
        name
        for name, value in net.state_dict().items()
        if not probed.state_dict()[name].equal(value)
    }
    assert changed == {"fc.weight", "fc.bias"}
    assert same(purify(net, loader, NoDefense(), max_epochs=1, accelerator="cpu"), net)


class Sees(Defense):
    """Keeps the images of the steps, and those that it is given as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Tensor] = []
        self.clean: CleanData | None = None

    def study(self, net: nn.Module, clean: CleanData, generator: torch.Generator) -> None:
        self.clean = clean

    def loss(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        self.steps.append(images)
        return super().loss(net, images, labels)


class Keeps(Defense):
    """Keeps the images of the steps, and looks at nothing as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Tensor] = []

    def loss(self, net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        self.steps.append(images)
        return super().loss(net, images, labels)


class Holds(Sees):
    held_out = 0.25


class Prunes(Sees):
    tunes = False

    def study(self, net: nn.Module, clean: CleanData, generator: torch.Generator) -> None:
        super().study(net, clean, generator)
        with torch.no_grad():
            next(net.parameters())[0].zero_()


class Drops(DatasetDefense):
    def suspects(
        self, net: nn.Module, poisoned: PoisonedData, generator: torch.Generator
    ) -> Tensor:
        return poisoned.labels == 2


def rows(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_a_defense_that_looks_at_all_images(net: nn.Module, loader: Pairs) -> None:
    defense = Sees()
    purify(net, loader, defense, max_epochs=1, accelerator="cpu")
    assert defense.clean is not None
    assert rows(defense.clean.images) == rows(torch.cat(defense.steps))
    assert defense.clean.num_images == 24


def test_a_defense_that_wants_images_held_out(net: nn.Module, loader: Pairs) -> None:
    defense = Holds()
    purify(net, loader, defense, max_epochs=2, seed=1, accelerator="cpu")
    assert defense.clean is not None
    assert defense.clean.held_out is not None
    assert (defense.clean.num_images, defense.clean.held_out.num_images) == (18, 6)
    assert [len(images) for images in defense.steps] == [8, 8, 2] * 2
    assert rows(torch.cat(defense.steps)) == rows(defense.clean.images)
    assert not rows(defense.clean.images) & rows(defense.clean.held_out.images)


def test_a_defense_without_steps(net: nn.Module, loader: Pairs) -> None:
    defense = Prunes()
    purified = purify(net, loader, defense, accelerator="cpu")
    assert defense.clean is not None
    assert defense.clean.num_images == 24
    assert not bool(next(purified.parameters())[0].any())
    assert bool(next(net.parameters())[0].any())
    assert not purified.training
    assert not defense.steps


def test_a_defense_that_cleans_a_training_set(net: nn.Module, loader: Pairs) -> None:
    defense = Drops()
    clean = purify(
        net,
        loader,
        defense,
        max_epochs=30,
        lr=0.1,
        seed=0,
        poisoned_loader=loader,
        accelerator="cpu",
    )
    found = defense.findings()
    assert (found["flagged"], found["num_rows"]) == (8, 24)
    images, labels = (torch.cat(part) for part in zip(*loader, strict=True))
    answers = clean(images).argmax(1)
    # A class that is not among what was trained on is never answered.
    assert not bool((answers == 2).any())
    assert torch.equal(answers[labels != 2], labels[labels != 2])
    with pytest.raises(ValueError, match=r"`poisoned_loader`.*which Drops inspects"):
        purify(net, loader, Drops(), accelerator="cpu")


def test_a_network_without_a_head_is_refused(loader: Pairs) -> None:
    with pytest.raises(ValueError, match="head"):
        purify(nn.Conv2d(3, 3, 3), loader, FST(), accelerator="cpu")


@pytest.mark.parametrize("epochs", [0, -1, 1.5])
def test_epochs_are_one_or_more(epochs: int, net: nn.Module, loader: Pairs) -> None:
    with pytest.raises(ValueError, match="max_epochs"):
        purify(net, loader, FST(), max_epochs=epochs, accelerator="cpu")


@pytest.mark.parametrize(
    ("defense", "words"),
    [
        (NeuralCleanse(threshold=1e9, rounds=1, steps=1, restarts=1), "No class was suspected"),
        (ChannelLipschitzPruning(u=50), "Nothing was pruned"),
        (AdversarialNeuronPruning(max_pruning_ca_drop=0.0), None),
    ],
)
def test_a_defense_that_did_nothing_says_so(defense: Any, words: str | None) -> None:
    """And one that prunes what costs nothing does not warn."""
    loader = DataLoader(TensorDataset(tiny.images(32) / 255, tiny.labels(32)), 8)
    net = tiny.conv_net()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        purified = purify(net, loader, defense, max_epochs=1, lr=0.5, accelerator="cpu", seed=0)
    said = [str(each.message) for each in caught if type(defense).__name__ in str(each.message)]
    pruned = defense.findings().get("pruned_channels")
    if words is None:
        assert bool(said) is (pruned == 0)
        return
    assert len(said) == 1
    assert words in said[0]
    for name, value in purified.state_dict().items():
        assert torch.equal(value, net.state_dict()[name])


def steps(loader: Any, net: nn.Module, **options: Any) -> int:
    """How many steps the optimizer takes."""
    count = 0

    class Counting(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            nonlocal count
            result = super().step(closure)
            count += any(p.grad is not None for group in self.param_groups for p in group["params"])
            return result

    options = {"max_epochs": 5} | options
    purify(
        net,
        loader,
        FST(),
        optimizer=lambda parameters: Counting(parameters, lr=0.01),
        accelerator="cpu",
        **options,
    )
    return count


class Once:
    """Gives its batches in one pass only, and is no iterator."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches = iter(batches)

    def __iter__(self) -> Iterator[Any]:
        return self.batches


class OnceDataset(IterableDataset[Any]):
    def __init__(self, rows: Iterable[Any]) -> None:
        self.rows = iter(rows)

    def __iter__(self) -> Iterator[Any]:
        return self.rows


@pytest.mark.parametrize(
    "iterator",
    [lambda loader: (batch for batch in loader), lambda loader: map(tuple, loader), iter],
    ids=["generator", "map", "iterator of a loader"],
)
def test_an_iterator_is_read_into_memory(
    net: nn.Module, loader: Pairs, iterator: Callable[[Any], Iterable[Any]]
) -> None:
    assert steps(iterator(loader), net) == 15
    given = purify(net, iterator(loader), FST(), max_epochs=3, seed=0, accelerator="cpu")
    assert same(given, purify(net, loader, FST(), max_epochs=3, seed=0, accelerator="cpu"))


def test_an_endless_iterator_is_refused(
    net: nn.Module, loader: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fst_lightning.modules.batches.MAX_BYTES", 100_000)
    with pytest.raises(ValueError, match="is the loader endless"):
        purify(net, itertools.cycle(loader), FST(), accelerator="cpu")
    with pytest.raises(ValueError, match="is the loader endless"):
        purify(net, Once(itertools.cycle(loader)), Holds(), accelerator="cpu")


@pytest.mark.parametrize(
    "empty",
    [
        [],
        iter([]),
        DataLoader(TensorDataset(torch.zeros(0, 3, 8, 8), torch.zeros(0)), 8),
        DataLoader(TensorDataset(torch.zeros(7, 3, 8, 8), torch.zeros(7)), 8, drop_last=True),
        DataLoader(OnceDataset([]), 8),
    ],
    ids=["list", "iterator", "no rows", "drop_last", "iterable data set"],
)
@pytest.mark.parametrize("defense", [FST(), FineTuning(), NoDefense()])
def test_a_loader_without_a_batch_is_refused(
    net: nn.Module, empty: Iterable[Any], defense: Defense
) -> None:
    with pytest.raises(ValueError, match="`clean_loader` to give at least one batch"):
        purify(net, empty, defense, accelerator="cpu")


def test_a_loader_that_gives_its_batches_once_is_refused_in_the_second_pass(
    net: nn.Module, loader: Pairs
) -> None:
    rows: list[Any] = list(loader.dataset)  # type: ignore[call-overload]
    for once in (lambda: Once(loader), lambda: DataLoader(OnceDataset(rows), 8)):
        assert steps(once(), net, max_epochs=1) == 3  # looking at the first batch costs none
        with pytest.raises(ValueError, match=r"at least one step per epoch.*Epoch 2 had none"):
            purify(net, once(), FST(), max_epochs=2, accelerator="cpu")
        with pytest.raises(ValueError, match=r"at least one step per epoch.*Epoch 1 had none"):
            purify(net, once(), Sees(), max_epochs=1, accelerator="cpu")  # it looks at all first


@pytest.mark.parametrize(
    "options",
    [
        {"max_steps": 0},
        {"limit_train_batches": 0},
        {"limit_train_batches": 0.0},
        {"max_time": {"seconds": 0}},
    ],
    ids=str,
)
def test_a_network_that_was_prepared_and_not_tuned_is_never_returned(
    net: nn.Module, loader: Pairs, options: dict[str, Any]
) -> None:
    before = copy.deepcopy(net)
    with pytest.raises(ValueError, match="prepared and not tuned"):
        purify(net, loader, FST(), accelerator="cpu", **options)
    assert same(net, before)


def test_options_that_cannot_be_right_are_refused(net: nn.Module, loader: Pairs) -> None:
    for options, message in (
        ({"fast_dev_run": True}, "no `fast_dev_run`"),
        ({"lr": 0.0}, "`lr` to be a number greater than 0"),
        ({"lr": float("nan")}, "`lr` to be a number greater than 0"),
        ({"max_epochs": True}, "`max_epochs`"),
    ):
        with pytest.raises(ValueError, match=message):
            purify(net, loader, FST(), accelerator="cpu", **options)
    with pytest.raises(TypeError, match=r"lightning.Trainer, but got `epochs`"):
        purify(net, loader, FST(), epochs=3)
    with pytest.raises(TypeError, match=r"`defense` to be a Defense.*FST; pass FST\(\)"):
        purify(net, loader, FST)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"`net` to be an nn.Module, but got OrderedDict"):
        purify(net.state_dict(), loader, FST())  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"`optimizer` to be a function.*existing SGD"):
        purify(net, loader, FST(), optimizer=torch.optim.SGD(net.parameters()))  # type: ignore[call-overload]


def test_what_is_no_loader_is_refused(net: nn.Module, loader: Pairs) -> None:
    images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    wrong: list[tuple[Any, str]] = [
        (loader.dataset, "a data set, TensorDataset. Pass DataLoader"),
        ((images, labels), "but got tensors"),
        (images, "but got tensors"),
        (7, "to give batches, but got int"),
        ([images], "but got tensors"),
        ([[images]], "start with images and labels"),
    ]
    for given, message in wrong:
        with pytest.raises(TypeError, match=message):
            purify(net, given, FST(), accelerator="cpu")


class WithLogits(nn.Module):
    """Returns an object or a dictionary, as networks of other libraries do."""

    def __init__(self, net: nn.Module, kind: str) -> None:
        super().__init__()
        self.net = net
        self.kind = kind

    def forward(self, images: Tensor) -> Any:
        logits = self.net(images)
        if self.kind == "in training" and not self.training:
            return logits
        return {"logits": logits} if self.kind == "dict" else SimpleNamespace(logits=logits)


@pytest.mark.parametrize("kind", ["dict", "object", "in training"])
@pytest.mark.parametrize("defense", [FST, Sees, Prunes])
def test_networks_that_return_more_than_logits(
    net: nn.Module, loader: Pairs, kind: str, defense: type[Defense]
) -> None:
    wrapped = WithLogits(net, kind)
    purified = purify(wrapped, loader, defense(), max_epochs=2, seed=0, accelerator="cpu")
    plain = purify(net, loader, defense(), max_epochs=2, seed=0, accelerator="cpu")
    assert isinstance(purified, WithLogits)
    assert same(purified.net, plain)
    assert type(purified(torch.zeros(1, 3, 8, 8))) is type(wrapped.eval()(torch.zeros(1, 3, 8, 8)))
    assert not purified._forward_hooks


def test_a_network_whose_logits_nobody_names_is_refused(net: nn.Module, loader: Pairs) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, images: Tensor) -> Any:
            return self.net(images), images

    with pytest.raises(
        TypeError, match=r"^Expected the network to return logits.*returned a tuple"
    ):
        purify(Pair(), loader, FST(), accelerator="cpu")


def test_a_network_trained_anew_returns_what_it_did(net: nn.Module, loader: Pairs) -> None:
    purified = purify(
        WithLogits(net, "dict"),
        loader,
        Drops(),
        max_epochs=1,
        poisoned_loader=loader,
        accelerator="cpu",
    )
    assert set(purified(torch.zeros(1, 3, 8, 8))) == {"logits"}


def test_batches_of_other_forms_give_the_same(net: nn.Module, loader: Pairs) -> None:
    expected = purify(net, loader, FST(), max_epochs=1, seed=0, accelerator="cpu")
    for change in (
        lambda x, y: {"image": x, "label": y},
        lambda x, y: {"pixel_values": x, "labels": y, "id": 3},
        lambda x, y: (x, y, "more"),
        lambda x, y: [x, y[:, None]],
        lambda x, y: (x, y.int()),
        lambda x, y: (x, nn.functional.one_hot(y, 3).float()),
        lambda x, y: (x.double(), y),
    ):
        batches = [change(x, y) for x, y in loader]
        assert same(purify(net, batches, FST(), max_epochs=1, seed=0, accelerator="cpu"), expected)


def test_images_and_labels_that_the_network_lacks_are_refused(
    net: nn.Module, loader: Pairs
) -> None:
    changes: list[tuple[Callable[[Tensor, Tensor], Any], str]] = [
        (lambda x, y: (x, y + 1), "labels in 0..2 for a network with 3 outputs.*from 1 to 3"),
        (lambda x, y: (x, y - 1), "labels in 0..2.*from -1 to"),
        (lambda x, y: (x, y.float()), "one class number per image.*float32"),
        (lambda x, y: (x, y[:4]), "one class number per image"),
        (lambda x, y: (x[:, :1], y), r"takes? the batches.*\(8, 1, 8, 8\).*3 channels"),
    ]
    for change, message in changes:
        with pytest.raises(ValueError, match=message):
            purify(net, [change(x, y) for x, y in loader], FST(), accelerator="cpu")
    batches = list(loader)
    with pytest.raises(ValueError, match=r"labels in 0..2.*from 1 to 3"):
        purify(net, [*batches, (batches[0][0], batches[0][1] + 1)], FST(), accelerator="cpu")


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_called_where_no_gradients_are_wanted(net: nn.Module, context: Callable[[], Any]) -> None:
    def made() -> Any:
        generator = torch.Generator().manual_seed(0)
        return [(torch.randn(8, 3, 8, 8, generator=generator), torch.arange(8) % 3)] * 2

    expected = purify(net, made(), FST(), max_epochs=2, seed=0, accelerator="cpu")
    with context():
        given = purify(net, made(), FST(), max_epochs=2, seed=0, accelerator="cpu")
        again = purify(copy.deepcopy(net), iter(made()), Sees(), max_epochs=1, accelerator="cpu")
    assert same(given, expected)
    assert not any(p.is_inference() for p in [*given.parameters(), *again.parameters()])


def test_a_last_batch_of_one_image_is_skipped_only_if_batchnorm_cannot_take_it() -> None:
    """Two values per channel are needed: one image of two pixels has them, of one pixel not."""
    images, labels = torch.randn(9, 3, 2, 2), torch.arange(9) % 3
    loader = DataLoader(TensorDataset(images, labels), 8)
    for kernel, expected in ((1, 4), (2, 2)):
        net = nn.Sequential(
            nn.Conv2d(3, 4, kernel), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        ).append(nn.Linear(4, 3))
        assert steps(loader, net, max_epochs=2) == expected
        single = DataLoader(TensorDataset(images, labels), 1)
        if kernel == 1:
            assert steps(single, net, max_epochs=2) == 18
        else:
            with pytest.raises(ValueError, match="two or more images each for BatchNorm"):
                steps(single, net)


def test_networks_that_cannot_be_purified_are_refused_with_the_reason(loader: Pairs) -> None:
    for body, message in (
        (nn.utils.weight_norm(nn.Linear(192, 4)), "weight_norm at `1` stands in the way"),
        (nn.Linear(192, 4).requires_grad_(False), "all are frozen"),
    ):
        net = nn.Sequential(nn.Flatten(), body, nn.ReLU(), nn.Linear(4, 3))
        net[3].requires_grad_(message != "all are frozen")
        with pytest.raises(ValueError, match=message):
            purify(net, loader, FST(), accelerator="cpu")


def test_a_network_in_half_precision_takes_floats(net: nn.Module, loader: Pairs) -> None:
    purified = purify(net.bfloat16(), loader, FST(), max_epochs=1, accelerator="cpu")
    assert next(purified.parameters()).dtype == torch.bfloat16


def test_looking_at_the_first_batch_moves_no_random_number(net: nn.Module, tmp_path: Path) -> None:
    """The order of a shuffled loader is that of a fit by hand."""
    images, labels = torch.randn(24, 3, 8, 8), torch.arange(24) % 3
    orders = []
    for given in (None, torch.Generator()):
        seen: list[list[int]] = []
        for by_hand in (True, False):
            defense = Keeps()
            torch.manual_seed(3)
            if given is not None:
                given.manual_seed(4)
            rows = TensorDataset(images, labels)
            loader = DataLoader(rows, 8, shuffle=True, generator=given)
            if by_hand:
                module = PurificationModule(copy.deepcopy(net), defense)
                tiny.trainer(tmp_path, max_epochs=2).fit(module, loader)
            else:
                purify(net, loader, defense, max_epochs=2, accelerator="cpu")
            drawn = torch.cat(defense.steps)
            seen.append([int((images == image).all((1, 2, 3)).nonzero()) for image in drawn])
        assert seen[0] == seen[1]
        orders.append(seen[0])
    assert orders[0] != orders[1]


def test_the_whole_result(net: nn.Module, loader: Pairs) -> None:
    arguments: dict[str, Any] = {"max_epochs": 3, "seed": 0, "accelerator": "cpu"}
    result = purify(net, loader, "fst", return_result=True, **arguments)
    assert isinstance(result, PurifyResult)
    assert same(result.net, purify(net, loader, FST(), **arguments))
    assert len(result.history) == 3
    assert {"train/loss", "train/penalty", "train/head_cosine"} <= set(result.history[0])
    assert result.findings == {}
    pruned = purify(net, loader, "clp", return_result=True, **arguments)
    assert pruned.history == []
    assert pruned.findings
    assert purify(net, loader, NoDefense(), return_result=True, **arguments).history == []


def test_a_name_that_is_no_defense(net: nn.Module, loader: Pairs) -> None:
    with pytest.raises(ValueError, match=r"but got 'fst_'\. Did you mean fst"):
        purify(net, loader, "fst_")


def test_progress_is_shown_if_asked_for(
    net: nn.Module, loader: Pairs, capsys: pytest.CaptureFixture[str]
) -> None:
    purify(net, loader, Sees(), max_epochs=2, accelerator="cpu")
    assert capsys.readouterr().out == ""
    purify(net, loader, Sees(), max_epochs=2, accelerator="cpu", progress=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "purify: Sees studies the clean images ..."
    assert lines[-1].startswith("purify: epoch 2/2  loss")
    purify(net, loader, Prunes(), accelerator="cpu", progress=True)
    assert capsys.readouterr().out.startswith("purify: Prunes studies the clean images ...")


def test_nothing_is_said_of_modes_and_other_fits_are_not_silenced(
    net: nn.Module, loader: Pairs
) -> None:
    logger = logging.getLogger("lightning.pytorch")
    level, filters = logger.level, list(warnings.filters)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        purify(net.eval(), loader, FST(), max_epochs=1, accelerator="cpu")
    assert (logger.level, list(warnings.filters)) == (level, filters)


def test_a_diverged_network_is_never_returned(net: nn.Module, loader: Pairs) -> None:
    with pytest.raises(FloatingPointError, match="Try a lower `lr`"):
        purify(net, loader, FineTuning(), max_epochs=3, lr=1e30, accelerator="cpu")


def test_labels_that_are_probabilities_are_for_the_loss_alone(net: nn.Module) -> None:
    """Batches of mixup have such labels; a defense that looks at classes can't take them."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 3, 8, 8, generator=generator)
    soft = torch.rand(8, 3, generator=generator).softmax(1)
    purified = purify(net, [(images, soft)], FST(), max_epochs=1, seed=0, accelerator="cpu")
    assert not same(purified, net)
    with pytest.raises(ValueError, match="one class number per image"):
        purify(net, [(images, soft)], Sees(), max_epochs=1, accelerator="cpu")
