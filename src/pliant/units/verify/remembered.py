"""Products of the last forward, which need not be computed again: most of a forward equals the one before.

Layers before the units are the same in every forward, and so are those behind them once outgoing weights are zero. The n-th
product of a forward is taken from the one before if the weights were not written and the other operand is equal: to the last bit,
or, where units are exchanged, and with them the order of sums, to rounding. Only products with more weights than operands and
results are kept, so that they take at most the memory of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pliant.base.dispatch import DispatchMode
from pliant.units.verify.products import FACTORS
from pliant.units.verify.state import mark

ROUNDING = 1e-12  # relative to the largest entry


class Remembered(DispatchMode):
    """Has the products of a model's last pass at hand. Anything else but its parameters is compared by value."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        self.memories = {parameter.untyped_storage().data_ptr() for parameter in parameters}
        self.products: list[tuple[Any, list[Any], Tensor] | None] = []
        self.place = 0
        self.forgives = False  # rounding

    def again(self) -> Remembered:
        self.place = 0
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func not in FACTORS or kwargs or not all(_is_dense(each) for each in args):
            return func(*args, **(kwargs or {}))
        place, self.place = self.place, self.place + 1
        self.products += [None] * (place + 1 - len(self.products))
        before = self.products[place]
        if before is not None and before[0] is func and self._same(args, before[1]):
            return before[2].clone()  # a model may write into it
        result = func(*args)
        small = [each for each in (*args, result) if isinstance(each, Tensor) and not self._is_weight(each)]
        large = [each for each in args if isinstance(each, Tensor) and self._is_weight(each)]
        worth = sum(each.numel() for each in large) > sum(each.numel() for each in small)
        self.products[place] = (func, [self._kept(each) for each in args], result.clone()) if worth else None
        return result

    def _is_weight(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self.memories

    def _kept(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return _state(value) if self._is_weight(value) else value.clone()

    def _same(self, args: Sequence[Any], before: Sequence[Any]) -> bool:
        return len(args) == len(before) and all(map(self._agree, args, before))

    def _agree(self, value: Any, before: Any) -> bool:
        if not isinstance(value, Tensor):
            return not isinstance(before, Tensor) and value == before
        if self._is_weight(value):
            return _state(value) == before
        if not isinstance(before, Tensor) or value.shape != before.shape:
            return False
        if torch.equal(value, before):
            return True
        rounding = ROUNDING * float(before.abs().amax()) if self.forgives and before.numel() else 0.0
        return bool(((value - before).abs() <= rounding).all()) if rounding else False


def _is_dense(value: Any) -> bool:
    return not isinstance(value, Tensor) or value.layout is torch.strided


def _state(weight: Tensor) -> tuple[Any, ...]:
    """Where it lies, and whether that was written."""
    return weight.storage_offset(), weight.shape, weight.stride(), mark(weight)
