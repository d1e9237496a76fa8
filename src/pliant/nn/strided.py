"""A 1x1 convolution with a stride, computed as one without a stride of every `stride`-th position.

    y[i, j] = W x[s i, s j] + b         s  stride, in both directions

It is computed in these two steps, never as one strided convolution, whose weight gradient is wrong in PyTorch's oneDNN on CPUs
without AVX-512. Measured in torch 2.13 with `ONEDNN_MAX_CPU_ISA=AVX2`, with guard pages around every block of memory: for float32
in channels-last memory, 2 to 7 input channels, any number of output channels, strides 2 and 3 and no padding, it writes out of
bounds, and the process crashes or computes with overwritten numbers. Correct were 1 input channel and 8 or more, padding, groups,
larger kernels, contiguous memory, bfloat16, and `SSE41`, `AVX` and `AVX512_CORE` in place of `AVX2`.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def every(x: Tensor, stride: int) -> Tensor:
    """Every `stride`-th position from the first on, (batch, channels, h, w) -> (batch, channels, ⌈h/stride⌉, ⌈w/stride⌉).

    Means over windows of one position: the numbers of `x[..., ::stride, ::stride]`, whose gradient is slow in channels-last
    memory (with it, the shortcuts of the residual network take 1.3 to 1.6 times as long at 32x32 positions).

    >>> import torch
    >>> every(torch.arange(15.0).view(1, 1, 3, 5), 2)
    tensor([[[[ 0.,  2.,  4.],
              [10., 12., 14.]]]])
    """
    return F.avg_pool2d(x, 1, stride) if stride > 1 else x


def conv2d(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int, groups: int = 1) -> Tensor:
    """`torch.nn.functional.conv2d`, the same in all directions; of a 1x1 kernel with a stride, in two steps."""
    if padding == 0 and tuple(weight.shape[2:]) == (1, 1):
        x, stride = every(x, stride), 1
    return F.conv2d(x, weight, bias, stride, padding, groups=groups)
