"""The strided 1x1 convolution of a residual block's shortcut."""

from torch import Tensor, nn
from torch.nn import functional

# oneDNN's block on AVX-512; on AVX2 it is 8.
CHANNEL_BLOCK = 16


def shortcut_convolution(in_channels: int, out_channels: int, stride: int) -> nn.Conv2d:
    """Build a 1x1 convolution without bias whose backward pass is safe for any number of channels.

    oneDNN, the library that computes convolutions on x86, writes past its workspace in the
    backward pass of a strided 1x1 convolution in channels last with fewer input channels than its
    block: gradients become wrong, or the process dies. Such a layer reads every ``stride``-th
    pixel first and has a stride of 1 to oneDNN, which is the same function.

    Source: https://github.com/uxlfoundation/oneDNN/issues/6035 (oneDNN 3.12, torch 2.14).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride in both directions, at least 1.

    Shapes:
        ``(N, in_channels, H, W)`` to ``(N, out_channels, ceil(H / stride), ceil(W / stride))``.

    Example:
        >>> import torch
        >>> shortcut_convolution(4, 8, stride=2)(torch.zeros(1, 4, 5, 5)).shape
        torch.Size([1, 8, 3, 3])
    """
    kind = nn.Conv2d if in_channels >= CHANNEL_BLOCK else _SubsampledConvolution
    return kind(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)


class _SubsampledConvolution(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.stride
        return functional.conv2d(x[..., ::rows, ::columns], self.weight)
