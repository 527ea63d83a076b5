from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fst_lightning.models import preact_resnet18, small_resnet
from fst_lightning.models.shortcut import CHANNEL_BLOCK, shortcut_convolution


class UnsafeConvolutions(TorchFunctionMode):
    """Notes every strided 1x1 convolution with fewer input channels than oneDNN's block."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(zip(("input", "weight", "bias", "stride"), args, strict=False), **kwargs or {})
        if func in (torch.conv2d, functional.conv2d):
            weight, stride = given["weight"], given.get("stride", 1)
            narrow = weight.shape[1] < CHANNEL_BLOCK and weight.shape[2:] == (1, 1)
            if narrow and stride not in (1, (1, 1)):
                self.seen.append(tuple(weight.shape))
        return func(*args, **kwargs or {})


@given(
    st.integers(1, 20), st.integers(1, 20), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)
)
def test_it_is_the_strided_convolution(
    inputs: int, outputs: int, stride: int, height: int, width: int
) -> None:
    torch.manual_seed(0)
    layer = shortcut_convolution(inputs, outputs, stride).double()
    images = torch.randn(2, inputs, height, width, dtype=torch.double, requires_grad=True)
    made = layer(images)
    expected = functional.conv2d(images, layer.weight, stride=stride)
    torch.testing.assert_close(made, expected)
    upstream = torch.randn_like(made)
    parts = images, layer.weight
    torch.testing.assert_close(
        torch.autograd.grad(made, parts, upstream), torch.autograd.grad(expected, parts, upstream)
    )


def test_it_is_an_ordinary_convolution_by_name_and_shape() -> None:
    layer = shortcut_convolution(4, 8, 2)
    assert isinstance(layer, nn.Conv2d)
    assert {key: value.shape for key, value in layer.state_dict().items()} == {
        "weight": (8, 4, 1, 1)
    }
    assert type(shortcut_convolution(CHANNEL_BLOCK, 8, 2)) is nn.Conv2d  # as fast as torch's own


@pytest.mark.parametrize("build", [preact_resnet18, small_resnet])
def test_narrow_networks_have_no_convolution_that_corrupts_memory(
    build: Callable[..., nn.Module],
) -> None:
    images: Tensor = torch.rand(3, 3, 16, 16)
    with UnsafeConvolutions() as unsafe:
        build(10, width=4)(images)
    assert unsafe.seen == []


def test_the_test_sees_such_a_convolution() -> None:
    with UnsafeConvolutions() as unsafe:
        nn.Conv2d(4, 8, 1, stride=2)(torch.rand(3, 4, 6, 6))
    assert unsafe.seen == [(8, 4, 1, 1)]
