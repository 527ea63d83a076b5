"""Undoing a preparation restores what it changed, and nothing else."""

import copy

import torch
from torch import nn

from fst_lightning.defenses.common.preparation import Preparation


def make_net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(left, right) for left, right in pairs)


@torch.no_grad()
def prepare(net: nn.Module) -> Preparation:
    preparation = Preparation(net)
    net.get_parameter("2.weight").zero_()
    net.get_buffer("1.running_mean").fill_(2)
    preparation.settle()
    return preparation


def test_undo_restores_parameters_and_buffers() -> None:
    net, original = make_net(), make_net()
    preparation = prepare(net)
    assert not same(net, original)
    preparation.undo()
    assert same(net, original)
    net.get_parameter("2.weight").data.zero_()
    preparation.undo()  # a second time it does nothing
    assert not net.get_parameter("2.weight").any()


def test_weights_that_were_loaded_since_stay() -> None:
    net = make_net()
    preparation = prepare(net)
    loaded = copy.deepcopy(net.state_dict())
    loaded["2.weight"] += 1
    net.load_state_dict(loaded)
    preparation.undo()
    assert torch.equal(net.get_parameter("2.weight"), loaded["2.weight"])
    assert not net.get_buffer("1.running_mean").any()  # still what the preparation left


def test_a_cast_in_between_changes_nothing() -> None:
    net, original = make_net(), make_net().to(torch.bfloat16)
    preparation = prepare(net)
    net.to(torch.bfloat16)
    preparation.undo()
    assert same(net, original)


def test_lazy_layers_are_left_alone() -> None:
    net = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))
    preparation = Preparation(net)
    torch.nn.init.zeros_(net.get_parameter("1.weight"))
    preparation.settle()
    preparation.undo()
    assert net.get_parameter("1.weight").any()
