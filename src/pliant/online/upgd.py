# pyright: basic, reportIndexIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
"""UPGD's step: gradient descent that moves a weight the less, the more useful the weight is.

    U <- β U + (1 - β) (-g w)                    a weight's utility, to first order;  Û = U / (1 - β^t)
    w <- (1 - α λ) w - α (g + σ ξ) (1 - a)       a = sigmoid(Û / |max Û|), the maximum over all weights;  ξ ~ N(0, 1)

`pliant.optimizers.UPGD` is the same method in PyTorch: its page has the source, its other forms and the departures. Of a replaced
unit, the utilities of its weights start over at 0; t counts the steps of the network.
"""

from __future__ import annotations

import math

import numpy as np

from pliant.online.compiling import compiled
from pliant.online.noise import fill_normals
from pliant.online.vectors import LANES, added, fused, larger, load, size, spread, store

EXP = tuple(1.0 / math.factorial(k) for k in range(13))  # of its series, from the constant on
HALVINGS, FARTHEST = 6, 32.0  # exp(x) = exp(x / 2^6)^(2^6), for |x| up to 32: to 1e-12


@compiled
def utility_rows(W, U, x, delta, beta, correction, outputs, back, top, scratch):
    """New utilities on every row; `back` gets w . delta. Returns the largest of `top` and all Û.

    `correction` is 1 / (1 - β^t), `scratch` (2, LANES).
    """
    width, zero, one = W.shape[1] // LANES, spread(W.dtype.type(0)), W.dtype.type(1)
    kept, new, corrected = spread(beta), spread(beta - one), spread(correction)
    # The last vector of a row goes by itself: beyond the last of `outputs` columns is no weight.
    whole, last = spread(top), spread(top)
    for j in range(W.shape[0]):
        bias = j == W.shape[0] - 1
        xj, dot = spread(one if bias else x[j]), zero
        for c in range(width):
            p = j * width + c
            d, w = load(delta, c), load(W, p)
            u = fused(kept, load(U, p), new * (xj * d * w))
            store(U, p, u)
            dot = fused(w, d, dot)
            u = u * corrected
            if c + 1 < width:
                whole = larger(u, whole)
            else:
                last = larger(u, last)
        if not bias:
            back[j] = added(dot)
    store(scratch, 0, whole)
    store(scratch, 1, last)
    for lane in range(LANES):
        top = max(top, scratch[0, lane])
        if (width - 1) * LANES + lane < outputs:
            top = max(top, scratch[1, lane])
    return top


@compiled
def unprotected(W, x):
    """1 - sigmoid(x), of a vector of numbers of the type of `W`."""
    real = W.dtype.type
    far, zero, one = spread(real(FARTHEST)), spread(real(0)), spread(real(1))
    y = (zero - larger(zero - larger(x, zero - far), zero - far)) * spread(real(2.0**-HALVINGS))
    power = spread(real(EXP[12]))
    for k in range(12):
        power = fused(power, y, spread(real(EXP[11 - k])))
    for _ in range(HALVINGS):
        power = power * power
    return one / (one + power)


@compiled
def protected_rows(W, U, x, delta, step_size, keep, correction, top, outputs, sigma, key, place, normal, noise, sums):
    """The step on every row; `sums` gets the sums of |new w|; `top` is |max Û|.

    The noise of row j is the normal numbers from place (`place` + j) times the length of `normal` on; `normal` and `noise` are
    scratch memory, as long as the longest row or longer.
    """
    width, zero, real = W.shape[1] // LANES, spread(W.dtype.type(0)), W.dtype.type
    down, kept, over = spread(-step_size), spread(keep), spread(min(correction / top, real(np.finfo(real).max)))
    numbers = normal[: 2 * (-(-outputs // (2 * LANES)) * LANES)]
    noise[:] = 0
    for j in range(W.shape[0]):
        bias = j == W.shape[0] - 1
        xj, sizes = spread(real(1) if bias else x[j]), zero
        if sigma > 0:
            fill_normals(key, np.uint64(place + j) * np.uint64(normal.size // 2), numbers)
            for o in range(outputs):
                noise[o] = sigma * real(numbers[o])
        for c in range(width):
            p = j * width + c
            free = unprotected(W, load(U, p) * over)
            new = fused(down * fused(xj, load(delta, c), load(noise, c)), free, kept * load(W, p))
            sizes = sizes + size(new)
            store(W, p, new)
        if not bias:
            sums[j] = added(sizes)
