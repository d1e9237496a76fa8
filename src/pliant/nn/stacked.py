"""Layers of several networks that train side by side: axis 0 of weights, inputs and outputs is the run.

    Linear   y[r] = x[r] W[r]^T + b[r]
    Conv2d   y[r] = W[r] * x[r] + b[r]

A stack of one is the plain layer, in the memory format that it is given (NHWC stays NHWC). A larger stack of
convolutions is computed one of three ways:

    loop      one convolution per run: fastest on a CPU (8 runs, one core: 1.5 to 3 times faster than "grouped" with 3 input
              channels, equal with 16; "product" is 3 to 7 times slower), and to the bit what each run alone gives
    grouped   one convolution with one group per run
    product   patches copied side by side (im2col), then one batched matrix product: for GPUs, where the few input channels of
              a first layer do not fill a grouped convolution

"auto" is "loop" on a CPU (measured) and "product" elsewhere (not measured).

The initial weights of a run are drawn on the CPU from its own generator: they depend neither on the stack nor on the device.
For continual backpropagation, give `UnitGroup(runs=...)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod, sqrt
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pliant.base.arguments import whole
from pliant.base.choices import one_of
from pliant.nn.strided import conv2d

How = Literal["auto", "loop", "grouped", "product"]


class _Stacked(nn.Module):
    """Weights (runs, outputs, inputs, ...) and biases (runs, outputs)."""

    def __init__(self, sizes: Mapping[str, int], device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        super().__init__()
        shape = [whole(name, size, 1) for name, size in sizes.items()]
        shape += shape[3:]  # a kernel is square
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(shape[:2], device=device, dtype=dtype))
        self.reset_parameters()

    @property
    def runs(self) -> int:
        return self.weight.shape[0]

    @torch.no_grad()
    def reset_parameters(self, generators: Sequence[torch.Generator] | None = None) -> None:
        """Draw weights, then biases, uniform in +-1/sqrt(fan_in), as torch's own layers do.

        `generators`: one per run, on the CPU; run r is then equal to a stack of one drawn from `generators[r]`. By default the
        global generator is used. Raises `ValueError` if there are not as many generators as runs.
        """
        if generators is not None and len(generators) != self.runs:
            raise ValueError(f"{type(self).__name__}: {len(generators)} generators for {self.runs} runs")
        bound = 1.0 / sqrt(prod(self.weight.shape[2:]))
        for run in range(self.runs):
            for part in (self.weight, self.bias):
                fresh = torch.empty(part.shape[1:], dtype=part.dtype)
                part[run] = fresh.uniform_(-bound, bound, generator=None if generators is None else generators[run])

    def _check(self, x: Tensor, axes: int) -> None:
        if x.dim() != axes or x.shape[0] != self.runs:
            raise ValueError(
                f"{type(self).__name__} of {self.runs} runs takes {axes} axes, the run first; it was given {tuple(x.shape)}"
            )


class StackedLinear(_Stacked):
    """`nn.Linear` for each run: (runs, batch, inputs) -> (runs, batch, outputs).

    Args:
        runs: networks side by side.
        inputs, outputs: features of each.

    Raises `ValueError` for sizes below 1, and in `forward` for an input of other axes.

    >>> StackedLinear(3, 4, 2)(torch.zeros(3, 10, 4)).shape
    torch.Size([3, 10, 2])
    """

    def __init__(
        self,
        runs: int,
        inputs: int,
        outputs: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__({"runs": runs, "outputs": outputs, "inputs": inputs}, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        self._check(x, 3)
        if self.runs == 1:
            return F.linear(x.squeeze(0), self.weight.squeeze(0), self.bias.squeeze(0)).unsqueeze(0)
        return torch.baddbmm(self.bias[:, None], x, self.weight.transpose(1, 2))

    def extra_repr(self) -> str:
        runs, outputs, inputs = self.weight.shape
        return f"{runs} runs, {inputs} -> {outputs}"


class StackedConv2d(_Stacked):
    """`nn.Conv2d` for each run: (runs, batch, inputs, height, width) -> (runs, batch, outputs, height', width').

    Args:
        runs: networks side by side.
        inputs, outputs: channels of each.
        kernel: its height and width.
        stride, padding: as `nn.Conv2d`'s, the same in both directions.
        how: "auto", "loop", "grouped" or "product", see the module.

    Raises `ValueError` for sizes below 1 and an unknown `how`, and in `forward` for an input of other axes.

    >>> StackedConv2d(3, 1, 8, kernel=5)(torch.zeros(3, 10, 1, 28, 28)).shape
    torch.Size([3, 10, 8, 24, 24])
    """

    def __init__(
        self,
        runs: int,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        how: How = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        stride, padding = whole("stride", stride, 1, of="positions"), whole("padding", padding, of="positions")
        how = one_of("how", how, get_args(How))
        super().__init__({"runs": runs, "outputs": outputs, "inputs": inputs, "kernel": kernel}, device, dtype)
        self.stride, self.padding = stride, padding
        self.how: How = how

    def forward(self, x: Tensor) -> Tensor:
        self._check(x, 5)
        if self.runs == 1:
            # squeezed, not indexed: the gradient of x[0] would be a copy
            weight, bias = self.weight.squeeze(0), self.bias.squeeze(0)
            return conv2d(x.squeeze(0), weight, bias, self.stride, self.padding).unsqueeze(0)
        how = self.how if self.how != "auto" else "loop" if x.device.type == "cpu" else "product"
        if how == "loop":
            return _one_by_one(x, self.weight, self.bias, self.stride, self.padding)
        return (_in_groups if how == "grouped" else _as_product)(x, self.weight, self.bias, self.stride, self.padding)

    def extra_repr(self) -> str:
        runs, outputs, inputs, kernel, _ = self.weight.shape
        return f"{runs} runs, {inputs} -> {outputs}, kernel {kernel}, stride {self.stride}, padding {self.padding}"


def _one_by_one(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
    each = [conv2d(x[run], weight[run], bias[run], stride, padding) for run in range(len(weight))]
    return torch.stack([y.movedim(1, -1) for y in each]).movedim(-1, 2)  # NHWC throughout


def _in_groups(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
    runs = len(weight)
    side_by_side = x.transpose(0, 1).flatten(1, 2)  # (batch, runs * inputs, height, width)
    y = conv2d(side_by_side, weight.flatten(0, 1), bias.flatten(), stride, padding, groups=runs)
    return y.view(len(y), runs, -1, *y.shape[2:]).transpose(0, 1)


def _as_product(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
    runs, outputs, inputs, kernel, _ = weight.shape
    padded = F.pad(x, (padding,) * 4) if padding else x
    # (runs, batch, inputs, h', w', kernel, kernel)
    patches = padded.unfold(3, kernel, stride).unfold(4, kernel, stride)
    batch, height, width = patches.shape[1], patches.shape[3], patches.shape[4]
    rows = patches.permute(0, 1, 3, 4, 2, 5, 6).reshape(runs, batch * height * width, inputs * kernel**2)
    y = torch.baddbmm(bias[:, None], rows, weight.flatten(2).transpose(1, 2))
    return y.view(runs, batch, height, width, outputs).permute(0, 1, 4, 2, 3)
