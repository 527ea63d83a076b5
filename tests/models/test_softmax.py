"""Networks that end in a softmax return the logarithm of their probabilities while tuned."""

import copy
import types
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from fst_lightning import PurificationModule
from fst_lightning.defenses import (
    FST,
    CleanData,
    Defense,
    ImplicitUnlearning,
    NeuralAttentionDistillation,
    NeuralCleanse,
    apply,
)
from fst_lightning.models import return_as_before, take_logits, takes_logits
from fst_lightning.models.softmax import kind_of_outputs
from fst_lightning.pipelines import purify
from tests import tiny

IMAGES = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Ending(nn.Module):
    """A network whose forward pass ends in something."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.body = tiny.conv_net(dropout=0.2)
        self.how = how

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body(images)
        attention = functional.softmax(logits, dim=1)  # not the last one
        logits = logits + 0 * attention
        if self.how == "functional":
            return functional.softmax(logits, dim=1)
        if self.how == "method":
            return logits.softmax(-1)
        if self.how == "torch":
            return torch.softmax(logits, 1)
        if self.how == "exponential":
            return logits.exp() / logits.exp().sum(1, keepdim=True)
        if self.how == "evaluation" and not self.training:
            return torch.softmax(logits, 1)
        if self.how == "log":
            return functional.log_softmax(logits, 1)
        return logits


@pytest.mark.parametrize("how", ["functional", "method", "torch", "exponential", "evaluation"])
def test_logits_are_the_logarithm_of_the_probabilities(how: str) -> None:
    net = Ending(how).eval()
    before, names = net(IMAGES), list(net.state_dict())
    take_logits(net)
    assert takes_logits(net)
    with pytest.warns(UserWarning, match="ends in a softmax"):
        net(IMAGES)
    for each in (net, copy.deepcopy(net)):
        assert torch.allclose(each(IMAGES), before.log(), atol=1e-5)
        assert torch.allclose(each(IMAGES).softmax(1), before, atol=1e-6)
    assert list(net.state_dict()) == names
    return_as_before(net)
    assert torch.equal(net(IMAGES), before)
    assert not takes_logits(net)
    return_as_before(net)


@pytest.mark.parametrize(("how", "kind"), [("log", "log_probabilities"), ("", "logits")])
def test_logits_stay_as_they_are(how: str, kind: str) -> None:
    net = Ending(how).eval()
    before = net(IMAGES)
    assert kind_of_outputs(before) == kind
    take_logits(net)
    assert torch.equal(net(IMAGES), before)
    assert torch.equal(net(IMAGES), before)


def test_a_copy_is_a_network_by_itself() -> None:
    """A forward that stayed bound to the first network would answer with its weights."""
    net = Ending("functional").eval()
    take_logits(net, warn=False)
    other = copy.deepcopy(net)
    with torch.no_grad():
        net.body.get_parameter("head.weight").zero_()
        net.body.get_parameter("head.bias").zero_()
    assert torch.allclose(net(IMAGES), torch.full((6, 4), 0.25).log())
    assert not torch.allclose(other(IMAGES), net(IMAGES))


@pytest.mark.parametrize("training_first", [False, True])
def test_a_softmax_of_evaluation_alone_is_left_out_in_training(training_first: bool) -> None:
    net = Ending("evaluation").eval()
    logits = net.body(IMAGES)
    take_logits(net, warn=False)
    for training in (training_first, not training_first):
        net.training = training
        for _ in range(2):
            assert torch.allclose(net(IMAGES).log_softmax(1), logits.log_softmax(1), atol=1e-5)
            assert not training or torch.equal(net(IMAGES), logits)


def test_nothing_underflows_where_a_probability_is_zero() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False), nn.Softmax(dim=1))
    weight = net.get_parameter("1.weight")
    with torch.no_grad():
        weight.copy_(torch.tensor([[500.0], [-500.0]]))
    image = torch.ones(1, 1, 1, 1)
    assert net(image)[0, 1] == 0
    take_logits(net, warn=False)
    torch.autograd.backward(functional.cross_entropy(net(image), torch.tensor([1])))
    assert weight.grad is not None
    assert weight.grad.flatten().tolist() == [1.0, -1.0]


def test_a_network_with_its_own_forward_gets_it_back() -> None:
    def forward(self: Ending, images: Tensor) -> Tensor:
        return Ending.forward(self, images).softmax(1)

    net = Ending("").eval()
    own = types.MethodType(forward, net)
    net.forward = own  # type: ignore[method-assign]
    before = net(IMAGES)
    take_logits(net, warn=False)
    assert torch.allclose(net(IMAGES), before.log(), atol=1e-5)
    return_as_before(net)
    assert net.forward is own


@pytest.mark.parametrize(
    "outputs",
    [
        torch.tensor([[0.2, 0.8], [0.5, 0.6]]),
        torch.tensor([[-0.2, 1.2]]),
        torch.tensor([[0.0, 0.0]]),
        torch.tensor([[1.0]]),
        torch.tensor([[1, 0]]),
        torch.rand(2, 3, 4).softmax(1),
        torch.empty(0, 3),
        (torch.tensor([[0.5, 0.5]]),),
        torch.tensor([[float("nan"), 1.0]]),
    ],
)
def test_what_is_no_row_of_probabilities_counts_as_logits(outputs: object) -> None:
    assert kind_of_outputs(outputs) == "logits"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_probabilities_are_recognized_in_every_precision(dtype: torch.dtype) -> None:
    logits = 3 * torch.randn(8, 100, generator=torch.Generator().manual_seed(0))
    assert kind_of_outputs(logits.softmax(1).to(dtype)) == "probabilities"
    assert kind_of_outputs(logits.log_softmax(1).to(dtype)) == "log_probabilities"


def weights(net: nn.Module) -> list[Tensor]:
    return [tensor.double() for tensor in net.state_dict().values()]


DEFENSES: dict[str, Callable[[], Defense]] = {
    "penalty": lambda: FST(alpha=0.2),
    "teacher": lambda: NeuralAttentionDistillation(teacher_epochs=1),
    "search": lambda: NeuralCleanse(rounds=2, steps=3),
    "unlearning": ImplicitUnlearning,
}


@pytest.mark.parametrize("name", DEFENSES)
def test_a_defense_gives_the_weights_that_it_gives_without_the_softmax(name: str) -> None:
    """Defenses that tune in steps, that copy the network, and that study all images first."""
    data = tiny.rows(40)
    loader = [(data.images[i : i + 8] / 255, data.labels[i : i + 8]) for i in range(0, 40, 8)]
    plain, soft = Ending(""), Ending("functional")
    soft.load_state_dict(plain.state_dict())
    make = DEFENSES[name]
    options: dict[str, Any] = {"max_epochs": 2, "seed": 3, "accelerator": "cpu"}
    wanted, got = make(), make()
    expected = purify(plain, loader, wanted, **options)
    with pytest.warns(UserWarning, match="ends in a softmax"):
        found = purify(soft, loader, got, **options)
    if name != "search":  # which finds nothing in noise
        moved = (a != b for a, b in zip(found.parameters(), soft.parameters(), strict=True))
        assert any(bool(each.any()) for each in moved)
    for one, other in ((found, expected), (got, wanted)):
        for (key, ours), theirs in zip(
            one.state_dict().items(), other.state_dict().values(), strict=True
        ):
            assert torch.allclose(ours.double(), theirs.double(), atol=1e-4), key
    assert kind_of_outputs(found(IMAGES)) == "probabilities"
    assert kind_of_outputs(soft.eval()(IMAGES)) == "probabilities"


def test_a_network_is_given_back_after_an_exception() -> None:
    seen: list[str] = []

    class Fails(Defense):
        def study(self, net: nn.Module, clean: CleanData, generator: torch.Generator) -> None:
            seen.append(kind_of_outputs(net(clean.normalize(clean.images))))
            raise RuntimeError("in a study")

    data = tiny.rows(8)
    net = Ending("functional")
    module = PurificationModule(net, Fails())
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    loader = DataLoader(TensorDataset(data.images / 255, data.labels), batch_size=4)
    with pytest.warns(UserWarning, match="softmax"), pytest.raises(RuntimeError, match="a study"):
        trainer.fit(module, loader)
    assert not takes_logits(net)
    clean = CleanData(data.images / 255, data.labels)
    generator = torch.Generator().manual_seed(0)
    with pytest.warns(UserWarning, match="softmax"), pytest.raises(RuntimeError, match="a study"):
        apply(Fails(), net, clean, generator)
    assert not takes_logits(net)
    assert seen == ["log_probabilities"] * 2
