"""The moves of a step in two compiled calls per average, where `pliant.engine.compiled` says that there are such: dense moves of
matrices and vectors by a count that the host knows, of gradients as they are. Entries whose W is 0 are left alone, where the
plain code moves them by nothing: only a gradient that is not finite tells the two apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from torch import Tensor, nn

from pliant.engine.compiled import lies_plainly
from pliant.engine.optimizer_state.young.moves import DenseUpdate, Plan


@dataclass
class _Moment:
    """One that the table has the address of, in `column` of its parameter's row."""

    key: str  # of the state
    column: int
    held: Tensor | None = None
    address: int = 0


class MovesInOneCall:
    """Those of some plans for `parameters`: a row of the table each, of `SHARED` columns and `OWN` for each plan."""

    def __init__(self, compiled: Any, plans: Sequence[Plan], parameters: Sequence[nn.Parameter]) -> None:
        self._compiled, self._plans = compiled, plans
        self._maxima = {plan.maximum for plan in plans}
        self._moments: list[list[_Moment]] = [[] for _ in parameters]
        self._table = np.zeros((len(parameters), compiled.SHARED + compiled.OWN * len(plans)), dtype=np.int64)
        rows = {parameter: row for row, parameter in enumerate(parameters)}
        for number, plan in enumerate(plans):
            first = compiled.SHARED + compiled.OWN * number
            for piece in cast(Sequence[DenseUpdate], plan.pieces):
                row = rows[piece.parameter]
                self._moments[row].append(_Moment(plan.key, first))
                self._table[row, 1 : compiled.SHARED], self._table[row, first + 1 : first + compiled.OWN] = _row(piece)
        self._scratch = np.empty(max(1, int(self._table[:, compiled.WIDTH].max())), dtype=np.int64)

    def move(self, ahead: int, count: float, states: dict[nn.Parameter, dict[str, Any]]) -> bool:
        """Whether it could. `count` steps so far, `ahead` of them since the ages were looked at; `states` of the parameters."""
        table = self._table
        for row, (moments, (parameter, state)) in enumerate(zip(self._moments, states.items(), strict=True)):
            if not moments:
                continue
            gradient = parameter.grad
            if gradient is None or not _fits(gradient, parameter) or not self._maxima.isdisjoint(state):
                return False
            table[row, 0] = gradient.data_ptr()
            for each in moments:
                moment: Tensor = state[each.key]
                if moment is not each.held or moment.data_ptr() != each.address:
                    if not _fits(moment, parameter):
                        return False
                    each.held, each.address = moment, moment.data_ptr()
                    table[row, each.column] = each.address
        for number, plan in enumerate(self._plans):
            weights, places, shared, factor = plan.weights.looked_up(ahead, count)
            size, shares = places.numel(), plan.shares.data_ptr()
            self._compiled.look_up(weights.data_ptr(), places.data_ptr(), size, shared, factor, shares)
            scale = plan.weights.scale(count)
            self._compiled.move(table, number, plan.squared, 1.0 if scale is None else scale, self._scratch)
        return True


def in_one_call(compiled: Any, plans: Sequence[Plan], parameters: Sequence[nn.Parameter]) -> MovesInOneCall | None:
    """The compiled moves of these plans by the module of `kernels()`; None where there are none."""
    pieces = [piece for plan in plans for piece in plan.pieces]
    if compiled is None or not pieces or not all(map(_is_simple, pieces)):
        return None
    return MovesInOneCall(compiled, plans, parameters)


def _is_simple(piece: object) -> bool:
    return isinstance(piece, DenseUpdate) and piece.is_simple and lies_plainly(piece.parameter)


def _row(piece: DenseUpdate) -> tuple[list[int], list[int]]:
    """The shape, a vector being a matrix of one row, and where W by row and by column is."""
    shape = tuple(piece.parameter.shape)
    by_row = by_column = 0
    for share in piece.shares:
        if len(shape) == 2 and share.shape[1] == 1:
            by_row = share.data_ptr()
        else:
            by_column = share.data_ptr()
    return [*shape] if len(shape) == 2 else [1, *shape], [by_row, by_column]


def _fits(tensor: Tensor, parameter: nn.Parameter) -> bool:
    return lies_plainly(tensor) and tensor.shape == parameter.shape
