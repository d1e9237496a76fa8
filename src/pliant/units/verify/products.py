"""Inputs of outgoing weights, and the vectors that take over means, checked at the matrix products themselves.

read        in a product  x @ W  the tap must show x, in mean and in mean size
take over   y = x @ W + b: with y moved by v and b by -v the output must be unchanged, or b is not the vector that takes over
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pliant.base.dispatch import DispatchMode

_ATEN = torch.ops.aten
FACTORS = {  # where the two factors are among the arguments
    **dict.fromkeys((_ATEN.mm.default, _ATEN.bmm.default, _ATEN.mv.default), (0, 1)),
    **dict.fromkeys((_ATEN.addmm.default, _ATEN.baddbmm.default), (1, 2)),
    _ATEN.convolution.default: (0, 1),
}


@dataclass
class Product:
    """One product with a whole weight: the other factor, the result, and the axes that are contracted and computed."""

    weight: int
    operand: Tensor
    contracted: int
    result: Tensor
    computed: int
    batched: bool = False  # a batch of matrices: (batch, ..)


class Products(DispatchMode):
    """Shows every product with one of the weights to `visit`, which may return another result."""

    def __init__(self, weights: Sequence[Tensor], visit: Callable[[Product], Tensor]) -> None:
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        self.weights, self.visit = weights, visit

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func not in FACTORS:
            return result
        left, right = (args[place] for place in FACTORS[func])
        for weight, operand, axis in ((right, left, -1), (left, right, -2)):
            number = self._number(weight)
            if number is not None:
                axis = 1 if func is _ATEN.convolution.default else max(axis, -operand.dim())
                batched = weight.dim() == 3 == operand.dim() and func is not _ATEN.convolution.default
                return self.visit(Product(number, operand, axis, result, max(axis, -result.dim()), batched))
        return result

    def _number(self, tensor: Tensor) -> int | None:
        """Which weight this is a view of all of."""
        if tensor.layout is not torch.strided:
            return None
        storage = tensor.untyped_storage().data_ptr()
        same = (
            number
            for number, weight in enumerate(self.weights)
            if weight.untyped_storage().data_ptr() == storage and weight.numel() == tensor.numel()
        )
        return next(same, None)


class Sums:
    """Mean and mean size of what was read, by entry."""

    def __init__(self) -> None:
        self.rows = 0
        self.total: Tensor | None = None

    @property
    def entries(self) -> int:
        return 0 if self.total is None else self.total.shape[1]

    def add(self, matrix: Tensor) -> None:
        """(rows, entries)"""
        both = torch.stack([matrix.sum(0), matrix.abs().sum(0)])
        self.total = both if self.total is None or self.total.shape != both.shape else self.total + both
        self.rows += len(matrix)

    def means(self, index: Tensor) -> Tensor:
        """(2, units, repeat)"""
        assert self.total is not None
        return self.total[:, index] / max(self.rows, 1)


def by_entry(tensor: Tensor, axis: int, *, batched: bool = False) -> Tensor:
    """(rows, entries); of a batch of matrices the entries of each, one matrix after another."""
    last = tensor.detach().movedim(axis, -1)
    return torch.cat([*last], -1) if batched else last.reshape(-1, last.shape[-1])
