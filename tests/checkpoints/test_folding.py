"""Weights in parts; tests/checkpoints/test_found_files.py has whole files of them."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from fst_lightning.checkpoints import Checkpoint, CheckpointError, load_into
from fst_lightning.checkpoints.folding import fold


def folded(parts: dict[str, Tensor]) -> Tensor:
    tensors, folds = fold(parts, ["fc.weight"])
    assert list(tensors) == ["fc.weight"]
    assert folds[0].name == "fc.weight"
    back = dict(zip(folds[0].parts, folds[0].split(tensors["fc.weight"]), strict=True))
    assert back.keys() == parts.keys()
    again, _ = fold(back, [])
    assert torch.allclose(again["fc.weight"], tensors["fc.weight"])
    return tensors["fc.weight"]


def test_pruned() -> None:
    original, mask = torch.randn(2, 3), torch.tensor([[1.0, 0, 1], [0, 1, 1]])
    weight = folded({"fc.weight_orig": original, "fc.weight_mask": mask})
    assert torch.equal(weight, original * mask)


def test_a_mask_opens_where_a_weight_was_tuned() -> None:
    parts = {"fc.weight_orig": torch.ones(2), "fc.weight_mask": torch.tensor([0.0, 1.0])}
    _, (only,) = fold(parts, [])
    weight, mask = only.split(torch.tensor([3.0, 0.0]))
    assert weight.tolist() == [3.0, 0.0]
    assert mask.tolist() == [1.0, 1.0]
    assert only.split(torch.tensor([0.0, 2.0]))[1].tolist() == [0.0, 1.0]


def test_weight_norm_by_hand() -> None:
    length, direction = torch.rand(2, 1) + 1, torch.randn(2, 3)
    weight = folded({"fc.weight_g": length, "fc.weight_v": direction})
    for row in range(2):
        norm = sum(float(v) ** 2 for v in direction[row]) ** 0.5
        for column in range(3):
            assert float(weight[row, column]) == pytest.approx(
                float(length[row, 0]) * float(direction[row, column]) / norm, rel=1e-6
            )


def test_spectral_norm_by_hand() -> None:
    original, left, right = torch.randn(2, 3), torch.randn(2), torch.randn(3)
    names = ("original", "0._u", "0._v")
    parts = {
        f"fc.parametrizations.weight.{name}": t
        for name, t in zip(names, (original, left, right), strict=True)
    }
    total = sum(
        float(left[i]) * float(original[i, j]) * float(right[j]) for i in range(2) for j in range(3)
    )
    assert torch.allclose(folded(parts), original / total, rtol=1e-5)


@pytest.mark.parametrize(
    "parts",
    [
        {"weight_orig": torch.ones(1, 9), "weight_mask": torch.ones(9, 1)},
        {"weight_orig": torch.ones(3), "weight_mask": torch.ones(1)},
        {"weight_orig": torch.ones(3).long(), "weight_mask": torch.ones(3)},
        {"weight_g": torch.ones(9, 1), "weight_v": torch.ones(1, 9)},
        {"weight_g": torch.ones(1), "weight_v": torch.ones(3, 3)},
        {"weight_g": torch.full((3, 3), 2.0), "weight_v": torch.full((3, 3), 2.0)},
        {"weight_orig": torch.ones(2, 3), "weight_u": torch.ones(2), "weight_v": torch.ones(4)},
        {"weight_orig": torch.ones(6), "weight_u": torch.ones(2), "weight_v": torch.ones(3)},
        {"weight_orig": torch.ones(2, 3), "weight_u": torch.ones(2)},
        {"weight_orig": torch.ones(3), "weight_mask": torch.ones(3), "weight": torch.ones(3)},
        {"parametrizations.weight.original": torch.ones(3, 3)},
    ],
    ids=str,
)
def test_parts_that_do_not_fit_are_left_alone(parts: dict[str, Tensor]) -> None:
    tensors, folds = fold(parts, ["weight"])
    assert tensors == parts
    assert not folds


def test_a_network_that_has_parts_itself_takes_them() -> None:
    """A class of somebody's own may normalize its weights."""

    def make() -> nn.Module:
        return nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 2)))

    source, net = make(), make()
    key_map = load_into(net, Checkpoint(Path("a.pt"), "state_dict", source.state_dict()))
    assert not key_map.folds
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in source.state_dict().items())


def test_spectral_norm_of_a_transposed_convolution_is_refused() -> None:
    """Its parts do not tell which axis is meant."""
    source = nn.Sequential(nn.ConvTranspose2d(2, 2, 3), nn.Linear(2, 2))
    net = nn.Sequential(nn.ConvTranspose2d(2, 2, 3), nn.Linear(2, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.nn.utils.spectral_norm(source[0])
    with pytest.raises(CheckpointError, match="either of two meanings"):
        load_into(net, Checkpoint(Path("a.pt"), "state_dict", source.state_dict()))
