# pyright: basic, reportMissingImports=false, reportPrivateImportUsage=false, reportCallIssue=false
"""What `pliant.engine.compiled`, which alone imports this, has Numba compile.

Arrays come as addresses in tables of integers, a row for each matrix, so that one signature serves networks of any depth and
width. Whoever fills a table vouches for it: contiguous float32 on the CPU, alive and of the sizes given.

Sums go over float64, products are rounded as PyTorch rounds them, nothing is reordered (no fastmath).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic


@intrinsic
def _pointer(typingctx, address):  # an integer as an address, which `carray` takes
    def generate(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), generate


_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}
_INT, _FLOAT = types.int64, types.float64
_TABLE, _SCRATCH = types.Array(_INT, 2, "C"), types.Array(_FLOAT, 1, "C")
_ADDRESSES = types.Array(_INT, 1, "C")
ZERO, ONE, HALF = np.float32(0.0), np.float32(1.0), np.float32(0.5)

# columns of the table of `average`
WEIGHT, ROWS, COLUMNS, FIRST, NONNEGATIVE = range(5)
# columns of the table of `move`: `SHARED` by all averages, and `OWN` for each
GRADIENT, HEIGHT, WIDTH, SHARED = range(4)
MOMENT, BY_ROW, BY_COLUMN, OWN = range(4)


@njit(types.void(_INT, _INT, _INT, _INT, _INT, _SCRATCH), **_OPTIONS)
def add_rows(values, rows, columns, total, magnitude, scratch):  # pragma: no cover
    """Add the rows of `values` to `total` and, unless that is 0, their sizes to `magnitude`; (columns,) both."""
    x, t = carray(_pointer(values), (rows, columns), np.float32), carray(_pointer(total), columns, np.float32)
    for j in range(columns):
        scratch[j] = 0.0
    for i in range(rows):
        for j in range(columns):
            scratch[j] += x[i, j]
    for j in range(columns):
        t[j] += np.float32(scratch[j])
    if magnitude:
        a = carray(_pointer(magnitude), columns, np.float32)
        for j in range(columns):
            scratch[j] = 0.0
        for i in range(rows):
            for j in range(columns):
                scratch[j] += abs(x[i, j])
        for j in range(columns):
            a[j] += np.float32(scratch[j])


@njit(types.void(_TABLE, _INT, _INT, _INT, _FLOAT, _FLOAT, _INT, _INT, _SCRATCH), **_OPTIONS)
def average(table, units, sums, readings, examples, decay_rate, utility, mean, scratch):  # pragma: no cover
    """Take in a step: sums (readings, units) of h and |h| become 0, the running averages of utility and mean (units,) move on."""
    s = carray(_pointer(sums), (readings, units), np.float32)
    u, m = carray(_pointer(utility), units, np.float32), carray(_pointer(mean), units, np.float32)
    old, new, count = np.float32(decay_rate), np.float32(1.0 - decay_rate), np.float32(examples)
    for group in range(table.shape[0]):
        rows, columns, first = table[group, ROWS], table[group, COLUMNS], table[group, FIRST]
        w = carray(_pointer(table[group, WEIGHT]), (rows, columns), np.float32)
        for j in range(columns):
            scratch[j] = 0.0
        for i in range(rows):
            for j in range(columns):
                scratch[j] += abs(w[i, j])
        size = 0 if table[group, NONNEGATIVE] else 1
        for j in range(columns):
            k = first + j
            of_unit = np.float32(scratch[j] / rows) * (s[size, k] / count)
            u[k] = u[k] * old + of_unit * new
            m[k] = m[k] * old + (s[0, k] / count) * new
    for r in range(readings):
        for j in range(units):
            s[r, j] = ZERO


@njit(types.void(_INT, _INT, _INT, _FLOAT, _FLOAT, _INT), **_OPTIONS)
def look_up(weights, places, size, shared, factor, out):  # pragma: no cover
    """`MissingWeights.find`: W = max(w[place] - shared, 0) x factor, for `size` positions."""
    p, share = carray(_pointer(places), size, np.int64), carray(_pointer(out), size, np.float32)
    most = np.int64(0)
    for k in range(size):
        most = max(most, p[k])
    w = carray(_pointer(weights), most + 1, np.float32)
    less, times = np.float32(shared), np.float32(factor)
    for k in range(size):
        share[k] = max(w[p[k]] - less, ZERO) * times


@njit(inline="always")
def _towards(moment, gradient, weight, squared, factor):  # pragma: no cover
    """As `torch.lerp` computes it."""
    target = (gradient * gradient if squared else gradient) * factor
    moved = moment + weight * (target - moment) if weight < HALF else target - (target - moment) * (ONE - weight)
    return ZERO if squared and moved < ZERO else moved


@njit(types.void(_TABLE, _INT, types.boolean, _FLOAT, _ADDRESSES), **_OPTIONS)
def move(table, number, squared, scale, scratch):  # pragma: no cover
    """`DenseUpdate.move` of each row of the table that has a moment of average `number`: towards g or g², times `scale`, by the
    larger W of row and column.

    Entries whose W is 0 are left alone.
    """
    factor, own = np.float32(scale), SHARED + OWN * number
    for piece in range(table.shape[0]):
        if not table[piece, own + MOMENT]:
            continue
        rows, columns = table[piece, HEIGHT], table[piece, WIDTH]
        v = carray(_pointer(table[piece, own + MOMENT]), (rows, columns), np.float32)
        g = carray(_pointer(table[piece, GRADIENT]), (rows, columns), np.float32)
        by_row, by_column = table[piece, own + BY_ROW], table[piece, own + BY_COLUMN]
        young = 0
        if by_column:
            c = carray(_pointer(by_column), columns, np.float32)
            for j in range(columns):
                if c[j] != ZERO:
                    scratch[young] = j
                    young += 1
        for i in range(rows):
            of_row = carray(_pointer(by_row), rows, np.float32)[i] if by_row else ZERO
            if of_row == ZERO and young * 8 < columns:
                c = carray(_pointer(by_column), columns, np.float32)
                for place in range(young):
                    j = scratch[place]
                    v[i, j] = _towards(v[i, j], g[i, j], c[j], squared, factor)
            elif by_column:
                c = carray(_pointer(by_column), columns, np.float32)
                for j in range(columns):
                    v[i, j] = _towards(v[i, j], g[i, j], max(of_row, c[j]), squared, factor)
            else:
                for j in range(columns):
                    v[i, j] = _towards(v[i, j], g[i, j], of_row, squared, factor)
