from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fst_lightning.checkpoints import Checkpoint, CheckpointError, load_into
from tests.checkpoints.samples import equal, make_net


def checkpoint(tensors: dict[str, Tensor], kind: str = "state_dict") -> Checkpoint:
    return Checkpoint(Path("a.pt"), kind, tensors)


def refused(net: nn.Module, tensors: dict[str, Tensor], match: str) -> None:
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(CheckpointError, match=match) as error:
        load_into(net, checkpoint(tensors))
    assert str(error.value).startswith("a.pt: ")
    assert "\n" not in str(error.value)
    assert equal(before, net.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_follow_the_network(dtype: torch.dtype) -> None:
    net, source = make_net(), make_net(seed=1).to(dtype)
    load_into(net, checkpoint(source.state_dict()))
    assert equal(net.state_dict(), source.float().state_dict())
    half = make_net().half()
    load_into(half, checkpoint(make_net(seed=1).state_dict()))
    assert equal(half.state_dict(), make_net(seed=1).half().state_dict())


def test_missing_counters_keep_their_values() -> None:
    net, source = make_net(), make_net(seed=1)
    net.layer1.get_submodule("0.bn1").num_batches_tracked.fill_(7)  # type: ignore[operator]
    tensors = {k: v for k, v in source.state_dict().items() if "num_batches" not in k}
    key_map = load_into(net, checkpoint(tensors))
    loaded = net.state_dict()
    assert loaded.pop("layer1.0.bn1.num_batches_tracked") == 7
    assert equal({k: loaded[k] for k in tensors}, tensors)
    assert key_map.restore(net.state_dict()).keys() == tensors.keys()


def test_wrong_number_of_classes() -> None:
    message = "the file has 43 classes, the data has 10"
    refused(make_net(10), make_net(43).state_dict(), message)
    plain = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 10, bias=False))
    other = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 43, bias=False))
    refused(plain, other.state_dict(), message)
    # a wider network differs in more than its last layer's output
    wide = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 10, bias=False))
    refused(plain, wide.state_dict(), r"`0\.weight` has shape \(3, 2\).*and 2 more")


def test_unfit_names() -> None:
    net = make_net()
    state = net.state_dict()
    refused(net, {}, "none of its names")
    refused(net, {"x": torch.zeros(1)}, "none of its names")
    lacking = {k: v for k, v in state.items() if "layer1" not in k}
    refused(net, lacking, r"lacks 10 tensors \(`layer1.*, \.\.\.\) of the network")
    refused(net, state | {"fc2.bias": torch.zeros(1)}, r"has 1 tensor \(`fc2\.bias`\)")
    wrapped = {f"module.{k}": v for k, v in state.items()}
    refused(net, wrapped | {"loss.weight": torch.zeros(1)}, r"`loss\.weight`")
    load_into(net, checkpoint(wrapped | {"loss.weight": torch.zeros(1)}, "lightning"))
    refused(nn.Flatten(), state, "the network has none")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["conv1.weight", "fc.bias", "layer1.0.bn1.running_var"])
def test_values_that_are_not_finite(name: str, value: float) -> None:
    tensors = make_net(seed=1).state_dict()
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[-1] = value
    refused(make_net(), tensors, f"`{name}` has values that are NaN or infinite")


def test_values_too_large_for_the_network() -> None:
    tensors = make_net(seed=1).double().state_dict()
    tensors["fc.bias"][0] = 1e300
    refused(make_net(), tensors, r"infinite in torch\.float32")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("fc.bias", torch.complex64),
        ("fc.bias", torch.int64),
        ("fc.bias", torch.bool),
        ("layer1.0.bn1.running_mean", torch.int64),
    ],
)
def test_other_kinds_of_numbers(name: str, dtype: torch.dtype) -> None:
    tensors = make_net(seed=1).state_dict()
    tensors[name] = tensors[name].abs().to(dtype)
    refused(make_net(), tensors, f"`{name}` holds {dtype} numbers")


def test_tied_weights() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight = net[0].weight
    state = {name: torch.full_like(tensor, 3.0) for name, tensor in net.state_dict().items()}
    load_into(net, checkpoint(state))
    assert equal(net.state_dict(), state)


@pytest.mark.parametrize(
    ("last", "other"),
    [
        (nn.Conv2d(2, 10, 1, bias=False), nn.Conv2d(2, 43, 1, bias=False)),  # no linear layer
        (nn.Linear(2, 10), nn.Linear(3, 43)),  # another input, too
        (nn.Linear(2, 10, bias=False), nn.Linear(3, 10, bias=False)),
    ],
    ids=str,
)
def test_other_shapes_are_no_other_number_of_classes(last: nn.Module, other: nn.Module) -> None:
    net, source = nn.Sequential(last), nn.Sequential(other)
    refused(net, source.state_dict(), "has shape")


def test_two_layers_with_other_outputs_are_no_last_layer() -> None:
    net = nn.ModuleDict({"a": nn.Linear(2, 10), "b": nn.Linear(2, 10)})
    source = nn.ModuleDict({"a": nn.Linear(2, 43), "b": nn.Linear(2, 43)})
    refused(net, source.state_dict(), r"`a\.weight` has shape \(43, 2\).*and 3 more")
    # one layer whose weight and bias count different numbers of classes
    state = nn.Linear(2, 43).state_dict() | {"bias": torch.zeros(44)}
    refused(nn.Linear(2, 10), state, r"`weight` has shape \(43, 2\).*and 1 more")


def test_what_an_error_advises() -> None:
    net = make_net()
    state = net.state_dict()
    wrapped = {f"student.{k}": v for k, v in state.items()}
    refused(net, wrapped | {"x.weight": torch.zeros(1)}, "say `checkpoint_key=student`")
    more = wrapped | {"x.weight": torch.zeros(1), "student.y": torch.zeros(1)}
    refused(net, more, "Choose the network")
    refused(net, state | {"y": torch.zeros(1)}, "Choose the network")
    refused(net, state | {"a.parametrizations.b.c": torch.zeros(1)}, "without parametrizations")


def test_complex_weights() -> None:
    net = nn.ParameterDict({"a": torch.zeros(2, dtype=torch.complex64)})
    state = {"a": torch.tensor([1 + 2j, 3j])}
    load_into(net, checkpoint(state))
    assert equal(net.state_dict(), state)
    refused(net, {"a": torch.zeros(2)}, r"`a` holds torch\.float32 numbers")
