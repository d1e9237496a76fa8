"""Norms over units with their statistics held constant.

In a layer norm, y = (x - mean) * rstd * scale + shift, units interact through the mean and the standard deviation alone. With
both held at the values of the unchanged model, units are independent, so that other errors of a group are found apart from the
norm. Held are

    the statistics of layer and group norms
    a mean that is taken off what it is the mean of, a root that what it is the root of is multiplied with or divided by

where the second is a norm written by hand, or a gate from such statistics: the one is spread over axes along which the other was
reduced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pliant.base.dispatch import DispatchMode
from pliant.units.models import tensors_in

_ATEN: Any = torch.ops.aten
_MEANS = {_ATEN.mean.dim, _ATEN.var_mean.correction}
_ROOTS = {_ATEN.sqrt.default, _ATEN.rsqrt.default, _ATEN.linalg_vector_norm.default, _ATEN.std.correction}
_MEETINGS = {_ATEN.sub.Tensor: "mean", _ATEN.mul.Tensor: "root", _ATEN.div.Tensor: "root"}


class HeldNorms(DispatchMode):
    """Records the statistics of every norm in a first pass and puts them in place of the computed ones in all later passes."""

    def __init__(self) -> None:
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        self.statistics: list[tuple[Tensor, ...]] = []
        self.passes = self.place = 0
        self.strayed = False  # a pass normalized other tensors than the first
        self.kinds: dict[int, tuple[str, Tensor]] = {}  # by memory: what is a statistic, and of which kind

    def again(self) -> HeldNorms:
        self.passes, self.place = self.passes + 1, 0
        self.kinds.clear()
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func in _MEETINGS:
            args = self._met(_MEETINGS[func], args)
        result = func(*args, **(kwargs or {}))
        if func is _ATEN.native_layer_norm.default:
            x, shape, weight, bias, _ = args
            mean, rstd = self._held(result[1:])
            return _affine((x - mean) * rstd, weight, bias, shape), mean, rstd
        if func is _ATEN.native_group_norm.default:
            x, weight, bias, batch, channels, _, groups, _ = args
            mean, rstd = self._held(result[1:])
            grouped = (x.reshape(batch, groups, -1) - mean.unsqueeze(-1)) * rstd.unsqueeze(-1)
            return _affine(grouped.view(x.shape), weight, bias, (channels, *[1] * (x.dim() - 2))), mean, rstd
        self._note(func, args, result)
        return result

    def _note(self, func: Any, args: tuple[Any, ...], result: Any) -> None:
        """Which memory holds a statistic now; a function of a root is one too."""
        for tensor in tensors_in(result):
            memory = _memory(tensor)
            power = func is _ATEN.pow.Tensor_Scalar and args[1] in (0.5, -0.5)
            of_root = torch.Tag.pointwise in func.tags and any(self._kind(each) == "root" for each in args)
            kind = "mean" if func in _MEANS else "root" if func in _ROOTS or power or of_root else None
            if kind is not None:
                self.kinds[memory] = kind, tensor
            elif not any(isinstance(each, Tensor) and _memory(each) == memory for each in args):
                self.kinds.pop(memory, None)  # else a view

    def _kind(self, value: Any) -> str | None:
        return self.kinds.get(_memory(value), (None,))[0] if isinstance(value, Tensor) else None

    def _met(self, kind: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The operands, a statistic among them held."""
        first, second = args[:2]
        if _is_spread(first, second) and self._kind(second) == kind:
            return (first, *self._held((second,)), *args[2:])
        if _is_spread(second, first) and self._kind(first) == kind:
            return (*self._held((first,)), second, *args[2:])
        return args

    def _held(self, computed: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if self.passes == 1:
            self.statistics.append(tuple(each.detach().clone() for each in computed))
        self.place += 1
        if self.place > len(self.statistics) or self.statistics[self.place - 1][0].shape != computed[0].shape:
            self.strayed = True
            return tuple(computed)
        return self.statistics[self.place - 1]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _is_spread(whole: Any, statistic: Any) -> bool:
    """Whether the second has one number where the first has several, along some axis."""
    if not (isinstance(whole, Tensor) and isinstance(statistic, Tensor)) or whole.dim() != statistic.dim():
        return False
    return any(few == 1 < many for few, many in zip(statistic.shape, whole.shape, strict=True))


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Sequence[int]) -> Tensor:
    scaled = x if weight is None else x * weight.view(*shape)
    return scaled if bias is None else scaled + bias.view(*shape)
