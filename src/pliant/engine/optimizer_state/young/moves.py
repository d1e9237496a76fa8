"""Moves of young entries towards what the coming step averages, by the weight W that its shared count leaves out.

    m <- m + W (s1 g - m),    v <- v + W (s2 g² - v),    x <- (1 - W) x,    s = 1 - β^(t-1)

and, where β has been changed, before that from the old one's scale to the new one's: m, v, x <- R m, R v, R x.

On small networks time goes into the number of operations and their kinds, not into their size: picking entries out and
putting them back costs more than moving a whole parameter, with W = 0 at most entries. One parameter is
moved after the other, so that no more memory is taken than the largest needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import cast

import torch
from torch import Tensor, nn

from pliant.engine.optimizer_state.young.averages import MissingWeights
from pliant.units.entries import BoundSlice

Combine = Callable[[Tensor, Tensor], Tensor]
Prepare = Callable[[Tensor, Tensor], Tensor]  # what the optimizer averages, from gradient and parameter


@dataclass
class AverageTarget:
    """What an average moves towards: g or g², times 1 - β^count where that is not 1."""

    squared: bool
    scale: float | Tensor | None
    prepare: Prepare | None

    def __call__(self, gradient: Tensor, parameter: Tensor) -> Tensor:
        if self.prepare is not None:
            gradient = self.prepare(gradient, parameter)
        target = gradient * gradient if self.squared else gradient
        return target if self.scale is None else target * self.scale


class DenseUpdate:
    """All entries of a parameter, and W from each set of units they lie between."""

    def __init__(self, parameter: nn.Parameter, parts: Sequence[BoundSlice], shares: Sequence[Tensor]) -> None:
        self.parameter, self.shares = parameter, shares
        self._parts = parts if any(part.part.shape is not None for part in parts) else None

    @property
    def is_simple(self) -> bool:
        """Whether it is a vector or a matrix, with W along its axes."""
        alone = len(self.shares) == 1 and self.shares[0].dim() == self.parameter.dim()
        crossed = len(self.shares) == 2 and {each.shape[1] == 1 for each in self.shares} == {True, False}
        return self._parts is None and (
            (self.parameter.dim() == 2 and (alone or crossed)) or (self.parameter.dim() == 1 and alone)
        )

    def move(self, towards: AverageTarget, moment: Tensor, maximum: Tensor | None) -> None:
        share = self._share()
        moment.lerp_(towards(cast(Tensor, self.parameter.grad), self.parameter), share)
        if towards.squared:
            moment.clamp_(
                min=0.0
            )  # W may round to more than 1, and another method may have filled a size just forgotten
        if maximum is not None:
            maximum.addcmul_(maximum, share, value=-1.0)

    def rescale(self, moments: Sequence[Tensor], farthest: Combine) -> None:
        """R in the place of W; that of the younger unit is the farthest from 1."""
        ratio = self._share(farthest)
        for moment in moments:
            moment.mul_(ratio)

    def _share(self, farthest: Combine = torch.maximum) -> Tensor:
        shares = self.shares
        if self._parts is not None:
            shares = [_unsplit(part, share) for part, share in zip(self._parts, shares, strict=True)]
        return shares[0] if len(shares) == 1 else reduce(farthest, shares)


class SparseUpdate:
    """Entries at some places along each axis of a large parameter."""

    def __init__(self, parameter: nn.Parameter, cuts: Sequence[tuple[int, Tensor]], shares: Sequence[Tensor]) -> None:
        self.parameter, self._cuts, self._shares = parameter, cuts, shares

    def move(self, towards: AverageTarget, moment: Tensor, maximum: Tensor | None) -> None:
        """Cuts cross where units of two axes meet. The first has the right W there, so it is put back last."""
        gradient = cast(Tensor, self.parameter.grad)
        moved: list[tuple[Tensor, Tensor | None]] = []
        for number, cut in enumerate(self._cuts):
            share = reduce(torch.maximum, [self._shares[number].index_select(*cut), *self._shares[number + 1 :]])
            entries = moment.index_select(*cut)
            entries.lerp_(towards(gradient.index_select(*cut), self.parameter.index_select(*cut)), share)
            if towards.squared:
                entries.clamp_(min=0.0)
            largest = None if maximum is None else maximum.index_select(*cut)
            moved.append((entries, None if largest is None else largest.addcmul_(largest, share, value=-1.0)))
        for cut, (entries, largest) in reversed(list(zip(self._cuts, moved, strict=True))):
            moment.index_copy_(*cut, entries)
            if maximum is not None and largest is not None:
                maximum.index_copy_(*cut, largest)

    def rescale(self, moments: Sequence[Tensor], farthest: Combine) -> None:
        for moment in moments:
            scaled: list[Tensor] = []
            for number, cut in enumerate(self._cuts):
                ratio = reduce(farthest, [self._shares[number].index_select(*cut), *self._shares[number + 1 :]])
                scaled.append(moment.index_select(*cut).mul_(ratio))
            for cut, entries in reversed(list(zip(self._cuts, scaled, strict=True))):
                moment.index_copy_(*cut, entries)


@dataclass
class Plan:
    """Of one average: the entries to be moved, and where W comes from."""

    key: str  # of the state
    maximum: str | None
    squared: bool
    weights: MissingWeights
    shares: Tensor  # W of each position, of which the pieces hold views
    pieces: Sequence[DenseUpdate | SparseUpdate]

    def find_shares(self, ahead: int, count: float | Tensor, kept: Tensor | None) -> None:
        """W for this step; 0 if it is not `kept`."""
        self.weights.find(ahead, count, self.shares)
        if kept is not None:
            self.shares *= kept


def _unsplit(part: BoundSlice, values: Tensor) -> Tensor:
    """W of a slice that sees the parameter in another shape, against the parameter as it is."""
    if part.part.shape is None:
        return values
    runs = values.shape[:1] if part.stacked else ()
    return values.expand(*runs, *part.part.shape).reshape(part.parameter.shape)
