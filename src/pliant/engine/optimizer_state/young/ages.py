"""How young the entries of a parameter are: steps since the reset, for each position along the axes where units lie.

Kept by position, not by entry: an entry of a matrix lies between a row and a column, and is as young as the younger.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from pliant.base.saving import fill
from pliant.engine.optimizer_state.young.moves import DenseUpdate, SparseUpdate
from pliant.units.entries import BoundSlice, SelectedUnits

NEVER = 2**40  # steps since a reset that did not happen
MANY = 2**18  # entries from which on it pays to look for the young ones
FEW = 0.05  # share of entries up to which it pays to move only those: putting them back is slow


class Ages:
    """A parameter, and for each set of axes along which units lie in it the age of every position, (runs, positions)."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter
        self._parts: dict[object, BoundSlice] = {}
        self._held: dict[object, Tensor] = {}
        self._left: dict[object, list[int]] = {}  # host: steps until no position is young, for both averages
        self._youngest: dict[object, int] = {}  # host: steps since the last reset, as far as it knows
        self.betas: tuple[float, float] | None = None  # those of its last step; None: no step was seen
        self._shares: dict[object, list[Tensor]] = {}

    def add(self, part: BoundSlice) -> None:
        key = _axes(part)
        if key not in self._parts:
            runs = part.front().shape[0]
            self._parts[key] = part
            self._held[key] = torch.full((runs, prod(part.leading)), NEVER, device=part.parameter.device)
            self._left[key], self._youngest[key] = [0, 0], NEVER

    @property
    def size(self) -> int:
        return sum(held.numel() for held in self._held.values())

    def left(self) -> list[int]:
        """For each set of axes and both averages, the steps until no position is young."""
        return [left for pair in self._left.values() for left in pair]

    def is_young(self, row: int) -> bool:
        return any(pair[row] for pair in self._left.values())

    def place(self, ages: Tensor, shares: Tensor) -> None:
        """Keep the ages in `ages` (size,), and read W from `shares` (2, size)."""
        first = 0
        for key, part in self._parts.items():
            held = self._held[key]
            where = slice(first, first + held.numel())
            ages[where] = held.flatten()
            self._held[key] = ages[where].view_as(held)
            self._shares[key] = [_facing(part, row.view_as(held)) for row in shares[:, where]]
            first = where.stop

    def grow(self, steps: Tensor | int) -> None:
        for held in self._held.values():
            held += steps

    def pass_by(self, steps: int) -> None:
        """So many steps fewer are left."""
        for key, left in self._left.items():
            left[:] = max(left[0] - steps, 0), max(left[1] - steps, 0)
            self._youngest[key] += steps

    def ripen(self, converged_after: Sequence[int]) -> None:
        """From now on a position is young for `converged_after` steps since its reset."""
        for key, left in self._left.items():
            left[:] = [max(steps - self._youngest[key], 0) for steps in converged_after]

    def recount(self, converged_after: Sequence[int]) -> None:
        """Read from the device how old the youngest are."""
        self._youngest = {key: int(held.min()) for key, held in self._held.items()}
        self.ripen(converged_after)

    # -- events -------------------------------------------------------------------------------------------------------

    def renew(self, part: BoundSlice, chosen: SelectedUnits, converged_after: Sequence[int]) -> None:
        """The chosen units' positions are new; they will be young for `converged_after` steps."""
        key = _axes(part)
        age = self._held[key]
        if chosen.all_at_full_strength and len(chosen.counts) == 1:
            age[0].index_fill_(0, part.along(chosen), 0)
        else:
            where = chosen.runs.unsqueeze(1), part.index.to(age.device)[chosen.units]
            age[where] = torch.where(chosen.strength.unsqueeze(1) >= 1.0, 0, age[where])
        self._left[key][:], self._youngest[key] = converged_after, 0

    def state_of(self, part: BoundSlice) -> dict[str, Any]:
        age = self._held[_axes(part)]
        last = None if self.betas is None else list(self.betas)
        return {"age": age[:, part.index.to(age.device)], "betas": last}

    def load(self, part: BoundSlice, held: dict[str, Any] | None, converged_after: Sequence[int]) -> None:
        """Go on from `state_of`; None: none was ever reset. A position is young for `converged_after` steps."""
        age = self._held[_axes(part)]
        here = age[:, part.index.to(age.device)]
        if held is not None:
            fill(here, held["age"], "age")
            if here.numel() and int(here.min()) < 0:
                raise ValueError("'age' of this state holds steps below 0")
        age[:, part.index.to(age.device)] = NEVER if held is None else here
        youngest = self._youngest[_axes(part)] = int(age.min())
        self._left[_axes(part)][:] = [max(steps - youngest, 0) for steps in converged_after]
        first, second = (None, None) if held is None or held["betas"] is None else held["betas"]
        self.betas = None if first is None or second is None else (float(first), float(second))

    # -- what is to be moved ------------------------------------------------------------------------------------------

    def pieces(self, row: int, converged_after: int) -> list[DenseUpdate | SparseUpdate]:
        """Entries to be moved for average `row`: none, all of them, or the few young ones by axis."""
        young = [key for key, left in self._left.items() if left[row]]
        shares = [self._shares[key][row] for key in young]
        few = self._few(young, converged_after) if self.parameter.numel() >= MANY else None
        if few is not None:
            kept = [number for number, (_, places) in enumerate(few) if len(places)]
            return [SparseUpdate(self.parameter, [few[k] for k in kept], [shares[k] for k in kept])] if kept else []
        return [DenseUpdate(self.parameter, [self._parts[key] for key in young], shares)] if young else []

    def _few(self, young: Sequence[object], converged_after: int) -> list[tuple[int, Tensor]] | None:
        """Axis and young positions. To look costs nothing on the CPU; elsewhere it would make the host wait."""
        parts = [self._parts[key] for key in young]
        simple = all(len(part.part.axes) == 1 and part.part.shape is None and not part.stacked for part in parts)
        if self.parameter.device.type != "cpu" or not simple:
            return None
        found = [
            (part.part.axes[0], (self._held[key][0] < converged_after).nonzero().flatten())
            for key, part in zip(young, parts, strict=True)
        ]
        share = sum(len(places) / self.parameter.shape[axis] for axis, places in found)
        return found if share <= FEW else None


def _axes(part: BoundSlice) -> object:
    return part.part.axes, part.part.shape, part.stacked


def _facing(part: BoundSlice, values: Tensor) -> Tensor:
    """`values` (runs, positions) as a view that broadcasts against the parameter, in `part.shape` if it has one."""
    front = values.view(-1, *part.leading, *[1] * len(part.row))
    axes = [axis + 1 for axis in part.part.axes]
    facing = front.movedim(list(range(1, len(axes) + 1)), axes)
    return facing if part.stacked else facing[0]
