# pyright: basic, reportIndexIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
"""Noise on every weight at every step, drawn when a row of weights is next used.

After step i of a learner every weight w becomes w + σ ξ[i], and at the next steps it shrinks by κ = 1 - α λ, if it
decays. A row that no input has used from step s to step t - 1, before t, has missed k = t - s such changes:

    w  <-  κ^(k - 1) w + σ Σ_{m < k} κ^m ξ[t - 1 - m]        of which the sum is N(0, Σ_{m < k} κ^(2 m))

so that one normal number per weight replaces all of them: exact in distribution, and a row that is never used costs
nothing. It is number (t, row, column) of the stream (seed, "noise"), so it does not depend on other learners.

    settled[row]  the step up to which a row has its noise. A row is settled when a step uses it; all rows are at every
                  multiple of REFRESH steps, and before a unit is replaced, so that a fresh weight gets no noise
                  from before its time.

Results depend on the examples alone, not on how they were divided into calls, nor on whether weights were read in
between: reading returns a copy, settled as if the next step used every row. Two copies of a row that was not used in
between are each exact in distribution, but not steps of one random walk. The noise after step t is in the weights from
step t + 1 on.

Sums of |w|, along a row and along the columns, follow the stored weights: settling a row updates its part of them. So a
utility that uses the mean |incoming weight| has every row with its noise up to the step that last used it, without the
noise missed since, of at most REFRESH steps.

Biases are used at every step. With Adam every weight moves at every step: all rows are settled at each.

`add_noise` is the plain version, a draw for every weight at every step; `pliant.online.lanes` uses it.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from pliant.online.arithmetic import normals, total_size
from pliant.online.compiling import compiled
from pliant.online.learner import matrix
from pliant.online.vectors import LANES

REFRESH = (
    1000  # steps after which all rows are settled, and sums that were kept by adding differences are added up anew
)

# ln(1 + f) = f - f^2 / 2 + f^3 (LOG[0] + LOG[1] f + ...) for 1 + f between sqrt(1/2) and sqrt(2), to 2e-7: our own fit
LOG = tuple(
    np.float32(c)
    for c in (0.333334103, -0.250009217, 0.199851278, -0.165928563, 0.146763966, -0.141184249, 0.092722143)
)
COS = tuple(np.float32(c) for c in (-1 / 2, 1 / 24, -1 / 720, 1 / 40320))  # 1 + x^2 (COS[0] + COS[1] x^2 + ...)
SIN = tuple(np.float32(c) for c in (-1 / 6, 1 / 120, -1 / 5040, 1 / 362880))  # x + x^3 (SIN[0] + ...)
ALL = -1
ROOT_HALF = np.int32(0x3F3504F3)  # the bits of sqrt(1/2)


@njit(nogil=True, error_model="numpy", fastmath={"contract"}, _nrt=False)
def fill_normals(key, counter, z):
    """Standard normal numbers, float32, from places `counter`, ... of a stream: z.size / 2 pairs, the first of each in front.

    Box and Muller: r = sqrt(-2 ln u) times the cosine and the sine of an angle, which one number of 64 bits gives: 31 are
    u, 29 an angle between -π/4 and π/4, one swaps cosine and sine and one turns the cosine round. Sizes reach 6.7.
    Straight arithmetic of 32 bits, which LLVM turns into vector instructions.
    """
    half = z.size // 2
    for p in range(half):
        bits = key + (counter + np.uint64(p) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)  # as in `uniform`
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        bits = bits ^ (bits >> np.uint64(31))
        u = np.float32(np.int32(bits >> np.uint64(33))) * np.float32(2.0**-31) + np.float32(2.0**-32)
        low = np.int32(bits & np.uint64(0x7FFFFFFF))
        pattern = np.float32(u).view(np.int32)  # u = 2^exponent (1 + f)
        exponent = np.int32((pattern - ROOT_HALF) >> np.int32(23))
        f = np.int32(pattern - np.int32(exponent << np.int32(23))).view(np.float32) - np.float32(1)
        tail = LOG[0] + f * (LOG[1] + f * (LOG[2] + f * (LOG[3] + f * (LOG[4] + f * (LOG[5] + f * LOG[6])))))
        log = f - f * f * (np.float32(0.5) - f * tail) + np.float32(exponent) * np.float32(math.log(2))
        radius = np.sqrt(np.float32(-2) * log)
        x = (np.float32(low >> np.int32(2)) + np.float32(0.5 - 2**28)) * np.float32(math.pi / 4 * 2.0**-28)
        y = x * x
        cosine = np.float32(1) + y * (COS[0] + y * (COS[1] + y * (COS[2] + y * COS[3])))
        sine = x + x * y * (SIN[0] + y * (SIN[1] + y * (SIN[2] + y * SIN[3])))
        cosine = -cosine if low & np.int32(2) else cosine
        z[p] = radius * (sine if low & np.int32(1) else cosine)
        z[half + p] = radius * (cosine if low & np.int32(1) else sine)


def padded_pairs(outputs: int) -> int:
    """Pairs of normal numbers that are drawn for a row of so many weights: whole vectors."""
    return -(-outputs // (2 * LANES)) * LANES


@compiled
def missed_std(std, keep, table):
    """table[k] = σ sqrt(1 + κ^2 + ... + κ^(2 (k - 1))), of the noise of k steps."""
    variance = 0.0
    for k in range(table.size):
        table[k] = std * math.sqrt(variance)
        variance = variance * keep * keep + 1.0


@compiled
def settle_row(row, outputs, std, key, place, z):
    """Add std N(0, 1) to the weights of a row; `place` says which numbers, `z` is scratch."""
    pairs = -(-outputs // (2 * LANES)) * LANES
    numbers = z[: 2 * pairs]
    fill_normals(key, np.uint64(place) * np.uint64(z.size // 2), numbers)
    spread = row.dtype.type(std)
    for o in range(outputs):
        row[o] += spread * row.dtype.type(numbers[o])


@compiled
def settle_row_and_columns(row, outputs, std, key, place, z, columns):
    """The same, keeping the sums of |w| along columns too."""
    pairs = -(-outputs // (2 * LANES)) * LANES
    numbers = z[: 2 * pairs]
    fill_normals(key, np.uint64(place) * np.uint64(z.size // 2), numbers)
    spread = row.dtype.type(std)
    for o in range(outputs):
        old = row[o]
        new = old + spread * row.dtype.type(numbers[o])
        columns[o] += abs(new) - abs(old)
        row[o] = new


@compiled
def settle_rows(net, parameters, layer, rows, count, settled, step, missed, shrunk, key, z, row_sum, columns):
    """Give `count` rows of a layer and its bias, (settled: all rows of the learner), the noise of the steps before `step`.

    All its rows if `count` is ALL. `missed` is the table of `missed_std`; stored weights count `shrunk` times.
    `row_sum` and `columns` are the layer's sums of |w|, which follow; each is left alone if empty.
    """
    W, first, bias = matrix(net, parameters, layer), first_row(net, layer), net.sizes[layer]
    for a in range((bias if count == ALL else count) + 1):
        j = a if count == ALL else bias if a == count else rows[a]
        pending = step - settled[first + j]
        if pending > 0:
            std = missed[pending] if j == bias else missed[pending] / shrunk
            place = step * settled.size + first + j
            if columns.size > 0 and j != bias:
                settle_row_and_columns(W[j], net.sizes[layer + 1], std, key, place, z, columns)
            else:
                settle_row(W[j], net.sizes[layer + 1], std, key, place, z)
            settled[first + j] = step
            if row_sum.size > 0 and j != bias:
                row_sum[j] = total_size(W[j])


@compiled
def settle_all(net, parameters, rows, settled, step, missed, shrunk, key, z):
    """The same for every row of a learner, sums left alone; `rows` is not read."""
    none = parameters[:0]
    for layer in range(net.sizes.size - 1):
        settle_rows(net, parameters, layer, rows, ALL, settled, step, missed, shrunk, key, z, none, none)


@compiled
def first_row(net, layer):
    """Where the rows of a layer begin among all rows of a learner."""
    first = 0
    for below in range(layer):
        first += net.sizes[below] + 1
    return first


@compiled
def add_noise(net, parameters, std, key, step):
    """Add std N(0, 1) to every weight and bias of a learner, two to a pair of draws: the plain version."""
    pair = step * net.pairs
    for layer in range(net.sizes.size - 1):
        outputs, width = net.sizes[layer + 1], net.unit_at[layer + 2] - net.unit_at[layer + 1]
        for j in range(net.sizes[layer] + 1):
            row = net.weight_at[layer] + j * width
            for o in range(0, outputs, 2):
                first, second = normals(key, pair)
                pair += 1
                parameters[row + o] += std * parameters.dtype.type(first)
                if o + 1 < outputs:
                    parameters[row + o + 1] += std * parameters.dtype.type(second)
