# pyright: basic
"""Examples gathered from a data set, with permuted inputs, in compiled code: a small share of the time of learning."""

from __future__ import annotations

from pliant.online.compiling import cached


@cached
def gather(X, rows, columns, scale, x):
    """x[s, t, j] = scale X[s, rows[s, t], columns[s, j]], (streams, n, inputs); what has one row serves every stream."""
    for s in range(x.shape[0]):
        picked, placed = rows[s % rows.shape[0]], columns[s % columns.shape[0]]
        for t in range(x.shape[1]):
            example, out = X[s % X.shape[0], picked[t]], x[s, t]
            for j in range(out.size):
                out[j] = x.dtype.type(example[placed[j]]) * scale
