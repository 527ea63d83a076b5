import pytest
import torch
from torch import nn
from torch.nn import functional

from fst_lightning.models import apply_head, is_head, num_inputs, weight_matrix


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
