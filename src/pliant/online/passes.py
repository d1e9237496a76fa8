# pyright: basic, reportIndexIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
"""Passes over one matrix of weights, in vector instructions along its outputs, for `pliant.online.rows`.

Weights that decay are stored as w / s, with one number s for all weights of a learner (`shrunk`), which alone shrinks at
every step: w <- κ w - α x δ is s <- κ s, then w/s <- w/s - (α / s) x δ, and rows of inputs that are zero are not written.
"""

from __future__ import annotations

from pliant.online.compiling import apart, compiled
from pliant.online.learner import adam_entry
from pliant.online.vectors import LANES, added, fused, larger, load, size, spread, store

# Rows of a matrix, and the units of a layer, begin at multiples of LANES; the rest of the last vector is zero.


@apart
def add_rows(W, x, active, count, shrunk, z):
    """z = bias + x (shrunk W), from rows whose input is not zero; four at a time, so that z is read and written less often."""
    width = W.shape[1] // LANES
    for c in range(width):
        store(z, c, load(W, (W.shape[0] - 1) * width + c))
    fours = count - count % 4
    for a in range(0, fours, 4):
        i, j, k, m = active[a], active[a + 1], active[a + 2], active[a + 3]
        xi, xj, xk, xm = spread(shrunk * x[i]), spread(shrunk * x[j]), spread(shrunk * x[k]), spread(shrunk * x[m])
        for c in range(width):
            sum2 = fused(xj, load(W, j * width + c), fused(xi, load(W, i * width + c), load(z, c)))
            store(z, c, fused(xm, load(W, m * width + c), fused(xk, load(W, k * width + c), sum2)))
    for a in range(fours, count):
        xj = spread(shrunk * x[active[a]])
        for c in range(width):
            store(z, c, fused(xj, load(W, active[a] * width + c), load(z, c)))


@apart
def descend_rows(W, x, active, count, delta, step_size, shrunk, wanted, back, sums):
    """w <- w - step_size x delta, by rows; `sums` gets the sum of |new w|, `back`, if `wanted`, (shrunk old w) . delta."""
    width, zero = W.shape[1] // LANES, spread(W.dtype.type(0))
    for a in range(count):
        j = active[a]
        down, dot, sizes = spread(-step_size * x[j]), zero, zero
        for c in range(width):
            old, d = load(W, j * width + c), load(delta, c)
            new = fused(down, d, old)
            sizes = sizes + size(new)
            if wanted:
                dot = fused(old, d, dot)
            store(W, j * width + c, new)
        sums[j] = added(sizes)
        if wanted:
            back[j] = shrunk * added(dot)


@apart
def descend_rows_and_columns(W, x, active, count, delta, step_size, shrunk, back, sums, columns):
    """The same, keeping the sums of |w| along columns too."""
    width, zero = W.shape[1] // LANES, spread(W.dtype.type(0))
    for a in range(count):
        j = active[a]
        down, dot, sizes = spread(-step_size * x[j]), zero, zero
        for c in range(width):
            old, d = load(W, j * width + c), load(delta, c)
            new = fused(down, d, old)
            dot, sizes = fused(old, d, dot), sizes + size(new)
            store(columns, c, load(columns, c) + (size(new) - size(old)))
            store(W, j * width + c, new)
        back[j], sums[j] = shrunk * added(dot), added(sizes)


@apart
def pass_back(W, active, count, delta, shrunk, back):
    """(shrunk w) . delta of the rows in use, into `back`, and 0 for all others."""
    width = W.shape[1] // LANES
    back[:] = 0
    for a in range(count):
        dot = spread(W.dtype.type(0))
        for c in range(width):
            dot = fused(load(W, active[a] * width + c), load(delta, c), dot)
        back[active[a]] = shrunk * added(dot)


@compiled
def pulled_rows(W, initial, x, delta, step_size, decay, pull, back, sums):
    """SGD's step on every row, toward zero and toward `initial`, w <- w - step_size (x delta + decay w + pull (w - initial));
    `back` and `sums` as above."""
    width, zero = W.shape[1] // LANES, spread(W.dtype.type(0))
    decay, pull, down = spread(decay), spread(pull), spread(-step_size)
    for j in range(W.shape[0]):
        bias = j == W.shape[0] - 1
        xj, dot, sizes = spread(W.dtype.type(1) if bias else x[j]), zero, zero
        for c in range(width):
            p = j * width + c
            d, old = load(delta, c), load(W, p)
            new = fused(down, fused(xj, d, fused(decay, old, pull * (old - load(initial, p)))), old)
            dot, sizes = fused(old, d, dot), sizes + size(new)
            store(W, p, new)
        if not bias:
            back[j], sums[j] = added(dot), added(sizes)


@compiled
def adam_rows(
    W, initial, M, V, x, delta, keep, decay, pull, beta1, beta2, eps, rate_in, rate_out, scale_in, scale_out, back, sums
):  # fmt: skip
    """Adam's step on every row, from `keep` w with the gradient x delta + decay w + pull (w - initial); `back`, `sums` as above.

    An entry counts its steps from the younger of its two units: the larger rate and scale. A bias has one unit only.
    """
    width, zero, decay, pull, keep = (
        W.shape[1] // LANES,
        spread(W.dtype.type(0)),
        spread(decay),
        spread(pull),
        spread(keep),
    )
    for j in range(W.shape[0]):
        bias = j == W.shape[0] - 1
        xj = spread(W.dtype.type(1) if bias else x[j])
        rate_j, scale_j = (
            spread(W.dtype.type(0) if bias else rate_in[j]),
            spread(W.dtype.type(0) if bias else scale_in[j]),
        )
        dot, sizes = zero, zero
        for c in range(width):
            p = j * width + c
            d, old = load(delta, c), load(W, p)
            rate, scale = larger(rate_j, load(rate_out, c)), larger(scale_j, load(scale_out, c))
            g = fused(xj, d, decay * old) + pull * (old - load(initial, p))
            adam_entry(W, M, V, p, keep * old, g, beta1, beta2, eps, rate, scale)
            dot, sizes = fused(old, d, dot), sizes + size(load(W, p))
        if not bias:
            back[j], sums[j] = added(dot), added(sizes)


@compiled
def add_columns(W, columns):
    """Add the sums of |w| along columns, the bias left out."""
    width = W.shape[1] // LANES
    for j in range(W.shape[0] - 1):
        for c in range(width):
            store(columns, c, load(columns, c) + size(load(W, j * width + c)))
