"""The entries of a parameter by unit.

A `BoundSlice` views any tensor of its parameter's shape (the parameter, its gradient, a moment) as (runs, units, repeat,
...), so that the engine need not know whether a unit is a row, a filter, a set of gate rows or a block of columns. A
single network is a stack of one run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from pliant.base.deprecation import renamed, renamed_arguments, renamed_attributes
from pliant.units.groups import Slice


@renamed_attributes({"full": "all_at_full_strength"})
@renamed_arguments({"full": "all_at_full_strength"})
@dataclass(eq=False)
class SelectedUnits:
    """The units that are replaced in one step, as three (count,) tensors; `counts` says how many in each run.

    Two things are known on the host: `all_at_full_strength`, that `strength` is 1 for every unit, which costs less; and
    `none_at_full_strength`, that it is less than 1 for every unit, so that none of them is new.
    """

    runs: Tensor
    units: Tensor
    strength: Tensor  # 1 = full replacement
    counts: list[int]
    all_at_full_strength: bool = False
    none_at_full_strength: bool = False

    @property
    def where(self) -> tuple[Tensor, Tensor]:
        """Index of the first two axes of any (runs, units, ...) tensor."""
        return self.runs, self.units

    def read(self, held: Tensor) -> Tensor:
        """The chosen units' entries of `held` (runs, units, ...), (count, ...), a copy."""
        return held[0].index_select(0, self.units) if len(self.counts) == 1 else held[self.where]

    def fill(self, held: Tensor, value: float) -> None:
        """These entries become `value`, whatever the strength."""
        if len(self.counts) == 1:
            held[0].index_fill_(0, self.units, value)
        else:
            held[self.where] = value


class BoundSlice:
    """A `Slice` of a live parameter, or of a vector of its shape (a running mean, a moment): `tensor` in the methods."""

    def __init__(self, part: Slice, parameter: Tensor, *, stacked: bool) -> None:
        self.part, self.parameter, self.stacked = part, parameter, stacked
        front = self.front()
        self.leading = tuple(front.shape[1 : 1 + len(part.axes)])
        self.row = tuple(front.shape[1 + len(part.axes) :])
        positions = prod(self.leading)
        index = torch.arange(positions).view(-1, part.repeat) if part.index is None else torch.tensor(part.index)
        if part.index is not None and (int(index.min()) < 0 or int(index.max()) >= positions):
            raise ValueError(f"the index of {part} leaves its {positions} positions")
        self.index = index.to(parameter.device)  # (units, repeat)
        # most slices are entries of one axis, for which PyTorch has operations that cost half of an index of several axes
        self._axis = part.axes[0] if len(part.axes) == 1 and part.shape is None and not stacked else None
        self._one_each = part.index is None and part.repeat == 1  # unit i is at position i

    @property
    def units(self) -> int:
        return len(self.index)

    @property
    def repeat(self) -> int:
        return self.index.shape[1]

    def front(self, tensor: Tensor | None = None) -> Tensor:
        """`tensor` as (runs, *axes of units, *row): a view, never a copy."""
        source = self.parameter.detach() if tensor is None else tensor
        runs_first = source if self.stacked else source.unsqueeze(0)
        if self.part.shape is not None:
            runs_first = runs_first.view(runs_first.shape[0], *self.part.shape)
        axes = [axis + 1 for axis in self.part.axes]
        return runs_first.movedim(axes, list(range(1, len(axes) + 1)))

    def entries(self, tensor: Tensor | None = None) -> Tensor:
        """All entries of every unit, (runs, units, entries of a unit)."""
        positions = self.front(tensor).flatten(1, len(self.leading))
        return positions[:, self.index.to(positions.device)].flatten(2)

    def numel(self) -> int:
        """Entries of all units of all runs."""
        return self.index.numel() * prod(self.row) * self.front().shape[0]

    def std(self) -> float:
        """Standard deviation of all entries, about their mean."""
        whole = self.index.numel() == prod(self.leading)  # all positions: no copy
        return float((self.front() if whole else self.entries()).double().std(correction=0))

    def along(self, chosen: SelectedUnits) -> Tensor:
        """The positions of the chosen units, one unit after another, (count x repeat,)."""
        return chosen.units if self._one_each else self._positions(chosen).flatten()

    def _positions(self, chosen: SelectedUnits) -> Tensor:
        """Those of the chosen units, (count, repeat)."""
        if self.index.device != chosen.units.device:
            self.index = self.index.to(chosen.units.device)
        return self.index.index_select(0, chosen.units)

    def _places(self, chosen: SelectedUnits) -> tuple[Tensor, ...]:
        """Index of the chosen units' positions in `front`."""
        axes = unraveled(self._positions(chosen), self.leading)
        return chosen.runs.unsqueeze(1), *axes

    def read(self, chosen: SelectedUnits, tensor: Tensor | None = None) -> Tensor:
        """The chosen units' entries, (count, repeat, *row), a copy."""
        if self._axis is None:
            return self.front(tensor)[self._places(chosen)]
        source = self.parameter.detach() if tensor is None else tensor
        found = source.index_select(self._axis, self.along(chosen))
        return (found.movedim(self._axis, 0) if self._axis else found).reshape(-1, self.repeat, *self.row)

    def write(self, chosen: SelectedUnits, fresh: Tensor | float, tensor: Tensor | None = None) -> None:
        """Move the chosen units' entries to `fresh`, by their strength."""
        if self._axis is not None and chosen.all_at_full_strength:
            target = self.parameter.detach() if tensor is None else tensor
            if not isinstance(fresh, Tensor):
                target.index_fill_(self._axis, self.along(chosen), fresh)
                return
            if fresh.shape == (chosen.units.shape[0], self.repeat, *self.row):
                entries = fresh.flatten(0, 1)
                target.index_copy_(
                    self._axis, self.along(chosen), entries.movedim(0, self._axis) if self._axis else entries
                )
                return
        front, places = self.front(tensor), self._places(chosen)
        front[places] = fresh if chosen.all_at_full_strength else blend(front[places], fresh, chosen.strength)

    def magnitude(self, dtype: torch.dtype, tensor: Tensor | None = None) -> Tensor:
        """Sum of |w| over the row of each position, (runs, units, repeat); of the parameter, or of `tensor` of its shape."""
        front = self.front(tensor)
        axes = tuple(range(1 + len(self.leading), front.dim()))
        sums = front.abs().sum(axes, dtype=dtype) if axes else front.abs().to(dtype)
        by_position = sums.flatten(1)
        if self.part.index is None:
            return by_position.view(-1, self.units, self.repeat)
        return by_position[:, self.index.to(by_position.device)]

    def spread(self, values: Tensor, rest: float) -> Tensor:
        """`values` (runs, units) at every entry of their units and `rest` elsewhere; broadcasts against `front()`."""
        positions = values.new_full((values.shape[0], prod(self.leading)), rest)
        index = self.index.to(values.device)
        positions[:, index.flatten()] = values.repeat_interleave(self.repeat, dim=1)
        return positions.view(-1, *self.leading, *[1] * len(self.row))


def blend(old: Tensor, fresh: Tensor | float, strength: Tensor) -> Tensor:
    """From `old` towards `fresh` by `strength` (count,): 0 keeps `old`, 1 gives `fresh`, even where `old` is NaN.

    >>> blend(torch.tensor([[float("nan")], [2.0]]), 0.0, torch.tensor([1.0, 0.5]))
    tensor([[0.],
            [1.]])
    """
    share = strength.to(old.dtype).reshape(-1, *[1] * (old.dim() - 1))
    return torch.where(share >= 1.0, fresh, old + share * (fresh - old))


__getattr__ = renamed(__name__, {"Chosen": "SelectedUnits"})


def unraveled(positions: Tensor, shape: Sequence[int]) -> tuple[Tensor, ...]:
    """The index along each axis, as `torch.unravel_index`, which loads 500 modules to check its arguments.

    >>> unraveled(torch.tensor([0, 5]), (2, 3))
    (tensor([0, 1]), tensor([0, 2]))
    """
    axes: list[Tensor] = []
    for size in reversed(shape[1:]):
        axes.append(positions % size)
        positions = positions.div(size, rounding_mode="floor")
    return (positions, *reversed(axes)) if shape else ()
