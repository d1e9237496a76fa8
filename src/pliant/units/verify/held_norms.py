"""Norms over units with their statistics held.

A layer norm, y = (x - mean) * rstd * scale + shift, lets units meet in the mean and the standard deviation alone. With both held
at the values of the untouched model it treats every unit by itself, so that what else may be wrong with a group is seen apart
from the norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class HeldNorms(TorchDispatchMode):
    """Records the statistics of every norm in a first pass and puts them in place of the computed ones in all later passes."""

    def __init__(self) -> None:
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        self.statistics: list[tuple[Tensor, ...]] = []
        self.passes = self.place = 0

    def again(self) -> HeldNorms:
        self.passes, self.place = self.passes + 1, 0
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.rsqrt.default:  # the heart of an RMS norm, ours or hand-written
            return self._held((result,))[0]
        if func is torch.ops.aten.native_layer_norm.default:
            x, shape, weight, bias, _ = args
            mean, rstd = self._held(result[1:])
            return _affine((x - mean) * rstd, weight, bias, shape), mean, rstd
        if func is torch.ops.aten.native_group_norm.default:
            x, weight, bias, batch, channels, _, groups, _ = args
            mean, rstd = self._held(result[1:])
            grouped = (x.reshape(batch, groups, -1) - mean.unsqueeze(-1)) * rstd.unsqueeze(-1)
            return _affine(grouped.view(x.shape), weight, bias, (channels, *[1] * (x.dim() - 2))), mean, rstd
        return result

    def _held(self, computed: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if self.passes == 1:
            self.statistics.append(tuple(each.detach().clone() for each in computed))
        self.place += 1
        if self.place > len(self.statistics) or self.statistics[self.place - 1][0].shape != computed[0].shape:
            raise RuntimeError(
                "the model normalised other tensors than before: its control flow depends on the units' values"
            )
        return self.statistics[self.place - 1]


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Sequence[int]) -> Tensor:
    scaled = x if weight is None else x * weight.view(*shape)
    return scaled if bias is None else scaled + bias.view(*shape)
