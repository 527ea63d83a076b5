"""The order of a defense, what it keeps, and what it is not told."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fst_lightning.defenses import (
    CleanData,
    DatasetDefense,
    Defense,
    FineTuning,
    NoDefense,
    PoisonedData,
    apply,
)
from fst_lightning.defenses.common.dataset_defense import detection_rates
from tests import tiny
from tests.defenses.drive import drive

ROWS = tiny.rows(20)


def clean_data(poisoned: PoisonedData | None = None) -> CleanData:
    return CleanData(ROWS.images, ROWS.labels, poisoned=poisoned)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


class Recorder(Defense):
    """Writes down what is called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.modes: dict[str, bool] = {}
        self.stop = False

    def note(self, name: str, net: nn.Module | None = None) -> None:
        self.calls.append(name)
        if net is not None:
            self.modes[name] = net.training

    def prepare(self, net: nn.Module, generator: torch.Generator) -> None:
        self.note("prepare")

    def study(self, net: nn.Module, clean: CleanData, generator: torch.Generator) -> None:
        self.note("study", net)

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
        return self.stop


STEP = ["loss", "penalty", "after_backward", "before_step", "after_step"]


def test_the_order_of_a_run() -> None:
    defense = Recorder()
    losses = drive(defense, tiny.conv_net(), clean_data(), epochs=2, batch_size=10)
    epochs = ["epoch 0", *STEP, *STEP, "epoch 1", *STEP, *STEP]
    assert defense.calls == ["prepare", "study", *epochs, "conclude", "finish"]
    assert len(losses) == 4
    assert not defense.modes["study"]
    assert not defense.modes["conclude"]
    assert defense.modes["epoch 0"]
    assert defense.modes["loss"]


def test_no_steps_where_none_are_needed() -> None:
    defense = Recorder()
    defense.stop = True
    assert drive(defense, tiny.conv_net(), clean_data()) == []
    assert defense.calls == ["prepare", "study", "conclude", "finish"]


def test_at_once_without_steps() -> None:
    defense = Recorder()
    net = tiny.conv_net().train()
    assert apply(defense, net, clean_data(), generator()) is net
    assert defense.calls == ["prepare", "study", "conclude", "finish"]
    assert not defense.modes["study"]
    assert not defense.modes["conclude"]
    assert net.training


def test_it_is_finished_after_an_exception() -> None:
    class Fails(Recorder):
        def study(self, net: nn.Module, clean: CleanData, generator: torch.Generator) -> None:
            raise RuntimeError("no teacher")

    driven, applied = Fails(), Fails()
    with pytest.raises(RuntimeError, match="no teacher"):
        drive(driven, tiny.conv_net(), clean_data())
    with pytest.raises(RuntimeError, match="no teacher"):
        apply(applied, tiny.conv_net(), clean_data(), generator())
    assert driven.calls == applied.calls == ["prepare", "finish"]


def test_the_places_of_the_base_do_nothing() -> None:
    plain, driven = tiny.conv_net(), tiny.conv_net()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    data = clean_data()
    for images, labels in data.batches(8, torch.Generator().manual_seed(1000)):
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(plain(images), labels))
        optimizer.step()
    drive(Defense(), driven, data)
    state = plain.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in driven.state_dict().items())
    assert Defense().findings() == {}
    assert not Defense().done


@pytest.mark.parametrize(
    "place", ["study", "begin_epoch", "loss", "after_backward", "before_step", "conclude"]
)
def test_what_a_callback_cannot_give(place: str) -> None:
    kind = type("Kind", (Defense,), {place: lambda self, *_: None})
    assert kind().needs_batch
    assert kind().needs_clean == (place in ("study", "begin_epoch", "conclude"))
    assert kind().overrides(place)


def test_what_a_callback_can_give() -> None:
    for place in ("prepare", "penalty", "after_step", "finish", "statistics", "findings"):
        assert not type("Kind", (Defense,), {place: lambda self, *_: None})().needs_batch
    assert type("Kind", (Defense,), {"held_out": 0.1})().needs_batch
    assert type("Kind", (Defense,), {"needs_poisoned_set": True})().needs_batch
    assert not FineTuning().needs_batch
    assert not NoDefense().needs_clean


class Finder(Defense):
    """Keeps findings of a shape that it does not know before."""

    channels: Tensor
    pattern: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("channels", torch.empty(0))
        self.register_buffer("pattern", None)
        self.register_buffer("scratch", torch.empty(0), persistent=False)


def test_findings_come_back_in_the_shape_they_were_saved_in() -> None:
    finder = Finder()
    finder.channels, finder.pattern = torch.tensor([3, 5]), torch.rand(1, 3, 8, 8)
    other = Finder()
    wrapped = nn.Module()
    wrapped.defense = other
    wrapped.load_state_dict({f"defense.{k}": v for k, v in finder.state_dict().items()})
    assert torch.equal(other.channels, finder.channels)
    assert other.channels.dtype == torch.int64
    assert other.pattern is not None
    assert torch.equal(other.pattern, finder.pattern)
    other.channels = torch.arange(7)
    other.load_state_dict(finder.state_dict())
    assert torch.equal(other.channels, finder.channels)
    with pytest.raises(RuntimeError, match="unknown"):
        other.load_state_dict({**finder.state_dict(), "unknown": torch.ones(1)})


class Bright(DatasetDefense):
    """Suspects the rows of one label."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.label = label

    def suspects(
        self, net: nn.Module, poisoned: PoisonedData, generator: torch.Generator
    ) -> Tensor:
        return poisoned.labels == self.label


def test_a_data_set_is_trained_on_without_the_suspected_rows() -> None:
    delivered, defense = PoisonedData(ROWS.images, ROWS.labels), Bright(2)
    apply(defense, tiny.conv_net(), clean_data(delivered), generator())
    expected = ROWS.labels == 2
    assert torch.equal(defense.suspected, expected)
    assert defense.findings() == {"flagged": int(expected.sum()), "num_rows": 20}
    seen: dict[str, Any] = {}

    def fit(net: nn.Module, rows: PoisonedData) -> nn.Module:
        seen.update(net=net, labels=rows.labels, images=rows.images)
        return net

    fresh = tiny.conv_net(seed=9)
    found = defense.retrain(lambda: fresh, delivered, defense.suspected, generator(), fit)
    assert found is fresh is seen["net"]
    assert torch.equal(seen["labels"], ROWS.labels[~expected])
    assert torch.equal(seen["images"], ROWS.images[~expected])


def test_a_data_set_defense_says_what_it_misses() -> None:
    with pytest.raises(ValueError, match=r"the delivered training set, which Bright inspects"):
        apply(Bright(0), tiny.conv_net(), clean_data(), generator())
    delivered = PoisonedData(ROWS.images, ROWS.labels)
    everything = torch.ones(20, dtype=torch.bool)
    with pytest.raises(ValueError, match="suspects all 20"):
        Bright(0).retrain(tiny.conv_net, delivered, everything, generator(), lambda net, _: net)

    class Scores(Bright):
        def suspects(self, *_: Any) -> Tensor:
            return torch.rand(20)

    with pytest.raises(ValueError, match=r"\(20,\) bools, but got \(20,\) of torch.float32"):
        apply(Scores(0), tiny.conv_net(), clean_data(delivered), generator())


def test_detection_rates_by_hand() -> None:
    found = torch.tensor([1, 1, 0, 0, 1, 0, 0, 0]).bool()
    truth = torch.tensor([1, 1, 1, 0, 0, 0, 0, 0]).bool()
    assert detection_rates(found, truth) == pytest.approx({"tpr": 2 / 3, "fpr": 1 / 5})
    nothing = torch.zeros(8, dtype=torch.bool)
    assert detection_rates(found, nothing) == {"tpr": None, "fpr": 3 / 8}
    assert detection_rates(found, None) == {"tpr": None, "fpr": None}


def test_a_copy_of_a_defense_is_one_of_its_own() -> None:
    defense = Finder()
    other = copy.deepcopy(defense)
    other.channels = torch.ones(3)
    assert defense.channels.numel() == 0
