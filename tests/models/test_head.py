import pytest
import torch
from torch import nn
from torch.nn import functional

from fst_lightning.models import apply_head, is_head, num_inputs, weight_matrix
from fst_lightning.models.head import num_outputs


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_1x1_convolution_is_a_linear_layer(layout: torch.memory_format) -> None:
    head = nn.Conv2d(6, 4, 1).to(memory_format=layout)
    features = torch.randn(5, 6)
    assert is_head(head)
    assert num_inputs(head) == 6
    expected = functional.linear(features, weight_matrix(head), head.bias)
    torch.testing.assert_close(apply_head(head, features), expected, rtol=0, atol=1e-6)
    with torch.no_grad():
        weight_matrix(head).fill_(2)
    assert bool((head.weight == 2).all())


def test_what_is_no_head() -> None:
    attention = nn.MultiheadAttention(8, 2)
    for layer in (nn.Conv2d(8, 3, 3), nn.Conv2d(8, 8, 1, groups=8), attention.out_proj, nn.ReLU()):
        assert not is_head(layer)


def test_what_is_a_head() -> None:
    for layer in (nn.Linear(8, 3), nn.Linear(8, 3, bias=False), nn.Conv2d(8, 3, 1, padding=1)):
        assert is_head(layer)
    others: tuple[nn.Module, ...] = (
        nn.Conv2d(8, 3, 1, stride=2),
        nn.Conv2d(8, 3, (1, 2)),
        nn.Conv2d(8, 8, 1, groups=2),
        nn.ConvTranspose2d(8, 3, 1),
        nn.Conv1d(8, 3, 1),
    )
    for other in others:
        assert not is_head(other)


@pytest.mark.parametrize("head", [nn.Linear(6, 4), nn.Conv2d(6, 4, 1)], ids=["linear", "conv"])
def test_sizes_of_a_head(head: nn.Linear | nn.Conv2d) -> None:
    features = torch.randn(5, 6)
    assert (num_inputs(head), num_outputs(head)) == (6, 4)
    assert weight_matrix(head).shape == (4, 6)
    assert apply_head(head, features).shape == (5, 4)
    slow = [
        [
            sum(w * x for w, x in zip(row, feature, strict=True)) + bias
            for row, bias in zip(weight_matrix(head).tolist(), head.bias.tolist(), strict=True)  # type: ignore[union-attr]
        ]
        for feature in features.tolist()
    ]
    torch.testing.assert_close(apply_head(head, features), torch.tensor(slow), rtol=0, atol=1e-5)
