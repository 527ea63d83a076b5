"""Tensors beside the weights, and what loading makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fst_lightning.checkpoints import Checkpoint, CheckpointError, load_into
from fst_lightning.checkpoints.extras import find_normalization, is_auxiliary, is_bookkeeping
from tests.checkpoints.samples import make_net

MEAN, STD = torch.tensor([0.5, 0.25, 0.125]), torch.tensor([0.25, 0.5, 1.0])


def checkpoint(**more: Tensor) -> Checkpoint:
    state = {f"module.{k}": v for k, v in make_net(seed=1).state_dict().items()}
    return Checkpoint(Path("a.pt"), "state_dict", {**state, **more})


@pytest.mark.parametrize(
    ("mean", "std", "name"),
    [
        (MEAN, STD, "normalize.mean"),
        (MEAN.view(1, 3, 1, 1), STD.view(1, 3, 1, 1), "0._mean"),
        (MEAN * 255, STD * 255, "pixel_mean"),
        (MEAN.double(), STD.half(), "mean"),
    ],
)
def test_a_normalization(mean: Tensor, std: Tensor, name: str) -> None:
    tensors = {name: mean, name.removesuffix("mean") + "std": std, "x": mean}
    found = find_normalization(tensors, tensors)
    assert found is not None
    assert found.mean == (0.5, 0.25, 0.125)
    assert found.std == (0.25, 0.5, 1.0)
    assert found.names == tuple(tensors)[:2]


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        (torch.ones(5), torch.ones(5)),
        (torch.ones(3), torch.ones(1)),
        (torch.ones(3), torch.zeros(3)),
        (torch.ones(3), torch.tensor([1.0, float("nan"), 1.0])),
        (torch.ones(3).long(), torch.ones(3)),
        (torch.ones(0), torch.ones(0)),
        (torch.ones(3), torch.ones(3).long()),
        (torch.tensor([1.0, float("inf"), 1.0]), torch.ones(3)),
        (torch.ones(3), torch.tensor([1.0, -1.0, 1.0])),
    ],
    ids=str,
)
def test_no_normalization(mean: Tensor, std: Tensor) -> None:
    tensors = {"a.mean": mean, "a.std": std}
    assert find_normalization(tensors, tensors) is None


@pytest.mark.parametrize("channels", [1, 4])
def test_normalizations_of_1_to_4_channels(channels: int) -> None:
    tensors = {"mean": torch.full((channels,), 0.5), "std": torch.full((channels,), 0.25)}
    found = find_normalization(tensors, tensors)
    assert found is not None
    assert (found.mean, found.std) == ((0.5,) * channels, (0.25,) * channels)


def test_means_above_2_are_of_images_in_0_to_255() -> None:
    for mean, scale in ((2.0, 1), (2.5, 255)):
        tensors = {"mean": torch.tensor([0.0, mean]), "std": torch.tensor([1.0, 3.0])}
        found = find_normalization(tensors, tensors)
        assert found is not None
        assert found.mean == (0.0, round(mean / scale, 6))
        assert found.std == (round(1 / scale, 6), round(3 / scale, 6))


def test_two_normalizations_are_none() -> None:
    tensors = {"a.mean": MEAN, "a.std": STD, "b.mean": MEAN, "b.std": STD}
    assert find_normalization(tensors, tensors) is None
    assert find_normalization(["a.mean", "b.std"], tensors) is None


def test_the_data_must_be_normalized_as_in_the_file() -> None:
    given = checkpoint(**{"module.norm.mean": MEAN.view(3, 1, 1), "module.norm.std": STD})
    net = make_net()
    for more in ({}, {"mean": (0.5, 0.25, 0.2), "std": (0.25, 0.5, 1)}, {"mean": (0.5, 0.25)}):
        with pytest.raises(CheckpointError, match=r"data\.mean=\[0\.5,0\.25,0\.125\] data\.std="):
            load_into(net, given, **({"std": (1.0,) * len(more.get("mean", ()))} | more))
    key_map = load_into(net, given, mean=(0.5, 0.2502, 0.125), std=(0.25, 0.5, 1))
    assert set(key_map.kept) == {"module.norm.mean", "module.norm.std"}
    restored = key_map.restore(net.state_dict())
    assert restored.keys() == given.tensors.keys()


def test_names_without_effect() -> None:
    assert is_bookkeeping("n_averaged", torch.tensor(3))
    assert is_bookkeeping("layer1.0.total_ops", torch.zeros(1))
    assert is_bookkeeping("a.relative_position_index", torch.zeros(4, 4))
    assert not is_bookkeeping("layer1.0.total_ops", torch.zeros(2))
    assert not is_bookkeeping("weight", torch.zeros(1))
    assert is_auxiliary("AuxLogits.fc.weight", "")
    assert is_auxiliary("module.aux1.conv.weight", "module.")
    assert not is_auxiliary("aux.weight", "module.")
    assert not is_auxiliary("layer.aux.weight", "")
    assert not is_auxiliary("auxiliary", "")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (torch.tensor(3.0), 3),
        (torch.tensor([3]), 3),
        (torch.tensor([[2.6]]).half(), 3),
        (torch.tensor(float("inf")).half(), 7),
        (torch.tensor(float("nan")), 7),
        (torch.tensor(True), 7),
    ],
    ids=str,
)
def test_counts_of_batches(value: Tensor, expected: int) -> None:
    net = make_net()
    counter: Tensor = net.layer1.get_submodule("0.bn1").num_batches_tracked  # type: ignore[assignment]
    counter.fill_(7)
    load_into(net, checkpoint(**{"module.layer1.0.bn1.num_batches_tracked": value}))
    assert counter.item() == expected
    assert counter.shape == ()
    assert counter.dtype == torch.int64
