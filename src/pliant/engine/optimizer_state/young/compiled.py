"""The moves of one average in two compiled calls, where `pliant.engine.compiled` says that there are such: dense moves of
matrices and vectors by a count that the host knows, of gradients as they are. Entries whose W is 0 are left alone, where the
plain code moves them by nothing: only a gradient that is not finite tells the two apart.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from pliant.engine.compiled import lies_plainly
from pliant.engine.optimizer_state.young.moves import DenseUpdate, Plan


class MovesInOneCall:
    """Those of one plan."""

    def __init__(self, compiled: Any, plan: Plan, pieces: list[DenseUpdate]) -> None:
        self._look_up, self._move, self._plan = compiled.look_up, compiled.move, plan
        self._parameters = [piece.parameter for piece in pieces]
        self._moments: list[Tensor | None] = [None] * len(pieces)  # those that the table has the addresses of
        self._addresses = [0] * len(pieces)
        self._table = np.array([_row(piece) for piece in pieces], dtype=np.int64)
        self._scratch = np.empty(int(self._table[:, 3].max()), dtype=np.int64)

    def move(
        self, ahead: int, count: float, states: dict[nn.Parameter, dict[str, Any]], gradients: dict[nn.Parameter, int]
    ) -> bool:
        """Whether it could. `count` steps so far, `ahead` of them since the ages were looked at; addresses of gradients, which
        all plans of a step share."""
        plan, table = self._plan, self._table
        for row, parameter in enumerate(self._parameters):
            state = states[parameter]
            moment: Tensor = state[plan.key]
            if plan.maximum in state:
                return False
            if moment is not self._moments[row] or moment.data_ptr() != self._addresses[row]:
                if not _fits(moment, parameter):
                    return False
                self._moments[row], self._addresses[row] = moment, moment.data_ptr()
                table[row, 0] = self._addresses[row]
            if parameter not in gradients:
                if parameter.grad is None or not _fits(parameter.grad, parameter):
                    return False
                gradients[parameter] = parameter.grad.data_ptr()
            table[row, 1] = gradients[parameter]
        weights, places, shared, factor = plan.weights.looked_up(ahead, count)
        self._look_up(weights.data_ptr(), places.data_ptr(), places.numel(), shared, factor, plan.shares.data_ptr())
        scale = plan.weights.scale(count)
        self._move(table, plan.squared, 1.0 if scale is None else scale, self._scratch)
        return True


def in_one_call(compiled: Any, plan: Plan) -> MovesInOneCall | None:
    """The compiled moves of a plan by the module of `kernels()`; None where there are none."""
    if compiled is None:
        return None
    pieces = [piece for piece in plan.pieces if isinstance(piece, DenseUpdate)]
    if len(pieces) < len(plan.pieces) or not all(piece.is_simple and lies_plainly(piece.parameter) for piece in pieces):
        return None
    return MovesInOneCall(compiled, plan, pieces)


def _row(piece: DenseUpdate) -> list[int]:
    """A vector is a matrix of one row."""
    shape = tuple(piece.parameter.shape)
    rows, columns = shape if len(shape) == 2 else (1, *shape)
    by_row = by_column = 0
    for share in piece.shares:
        if len(shape) == 2 and share.shape[1] == 1:
            by_row = share.data_ptr()
        else:
            by_column = share.data_ptr()
    return [0, 0, rows, columns, by_row, by_column]


def _fits(tensor: Tensor, parameter: nn.Parameter) -> bool:
    return lies_plainly(tensor) and tensor.shape == parameter.shape
