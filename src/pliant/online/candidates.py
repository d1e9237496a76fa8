# pyright: basic, reportIndexIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false
"""The best of N fresh units, each with the bias at which it is on for half of the last examples.

    w_n    the draws of `pliant.online.fresh`, n = 0 ... N - 1      x  inputs of the unit's layer
    b_n  = -median(w_n' x)                                          a  activity of draw n, phi(w_n' x + b_n)
    best = argmax_n norm(mean(δ a)) / std(a)                        δ  gradient of an example's loss with respect to the
                                                                       pre-activations of the layer that the unit feeds

over the last `EXAMPLES` examples, with x and δ as the step from each of them found them. Outgoing weights of a fresh unit are 0,
so mean(δ a) is their gradient: a unit of a large one begins to move at its first step. Draws whose std is 0, or whose score is
not finite, lose; ties go to the first. If all lose, the unit is the first of them with a bias of 0. With N = 1 nothing is chosen,
and the bias alone differs from that of a plain fresh unit.

`median` is the lower of the middle two of an even number, as in torch, and `std` divides by the number of examples. With dropout,
a is the activity before the unit itself may be left out.

Source: ours, docs/inventions.md ("best of N, bias-matched"). One departure from what was tried there: where a unit of the layer
below was replaced, the inputs of the examples before stay those of the old unit.
"""

from __future__ import annotations

import math

import numpy as np

from pliant.online.arithmetic import activate, copy, total, uniform
from pliant.online.compiling import apart, compiled, on_demand
from pliant.online.learner import redraw
from pliant.online.vectors import LANES, fused, load, matrix_view, spread, store

EXAMPLES = 256  # that are remembered


def padded(draws: int) -> int:
    """Columns of a matrix of so many draws: whole vectors."""
    return -(-draws // LANES) * LANES


@compiled
def remember(net, state, work, r, step):
    """Keep the inputs of all hidden layers at step `step`, and the gradients above them, in place of the oldest."""
    kept, place = state.past_inputs[r], step % EXAMPLES
    copy(kept[place], work.h[: kept.shape[1]])
    copy(state.past_deltas[r, place], work.delta[net.unit_at[2] :])


@on_demand
def redraw_best(net, rules, state, work, r, layer, step):
    """Fresh weights and biases of all units that are due after step `step`; `layer` is not read."""
    examples = min(step + 1, EXAMPLES)
    for hidden in range(work.due.size):
        for k in range(work.due[hidden]):
            first = state.replaced[r, hidden] * rules.candidates[r]
            best, bias = best_draw(net, rules, state, work, r, hidden, first, examples)
            redraw(net, rules, state, r, hidden, work.chosen[hidden, k], first + best, bias)


@compiled
def best_draw(net, rules, state, work, r, layer, first, examples):
    """The best of the draws from number `first` on, counted from there, and its bias."""
    draws, inputs, width = rules.candidates[r], net.sizes[layer], work.products.size // EXAMPLES
    above, end = net.unit_at[layer + 2] - net.unit_at[2], net.unit_at[layer + 3] - net.unit_at[2]
    w, z = matrix_view(work.draws, (0, inputs, width)), matrix_view(work.products, (0, examples, width))
    a, feeding = matrix_view(work.activity, (0, draws, EXAMPLES)), matrix_view(work.feeding, (0, draws, end - above))
    for n in range(draws):
        for j in range(inputs):
            w[j, n] = (2.0 * uniform(rules.fresh_key[r, layer], (first + n) * inputs + j) - 1.0) * net.bound[layer]
    product(state.past_inputs[r], net.unit_at[layer], inputs, w, 0, z)
    for n in range(draws):
        work.bias_of_draw[n] = center(net.activation, z, n, a[n, :examples], work.slope_of_draw[:examples])
    product(a, 0, examples, state.past_deltas[r], above, feeding)
    best, highest, bias = 0, -1.0, w.dtype.type(0)
    for n in range(draws):
        score = score_of(a[n, :examples], feeding[n])
        if score > highest:
            best, highest, bias = n, score, work.bias_of_draw[n]
    return best, bias


@compiled
def center(kind, z, n, a, scratch):
    """The bias of draw n, with which its activity `a`, (examples,), begins at the median of z, (examples, draws)."""
    for e in range(a.size):
        a[e] = scratch[e] = z[e, n]
    bias = -middle(scratch)
    for e in range(a.size):
        a[e] += bias
    activate(kind, a, scratch)
    return bias


@compiled
def score_of(a, feeding):
    """norm(mean(δ a)) / std(a) of activity a, (examples,), of which `feeding` is Σ δ a; -1 where it loses."""
    level, squares, norm = total(a) / a.dtype.type(a.size), 0.0, 0.0
    for e in range(a.size):
        squares += np.float64(a[e] - level) * np.float64(a[e] - level)
    for k in range(feeding.size):
        norm += np.float64(feeding[k]) * np.float64(feeding[k])
    if not squares > 0:
        return -1.0
    score = math.sqrt(norm / a.size / squares)
    return score if np.isfinite(score) else -1.0


@apart
def product(A, place, count, B, first, C):
    """C[i, k] = Σ A[i, place + j] B[j, first + k] over j < count. Rows of B and C are whole vectors, and so is `first`."""
    stride, width, zero = B.shape[1] // LANES, C.shape[1] // LANES, spread(C.dtype.type(0))
    tiles = C.shape[0] // 4 * 4
    for c in range(width):
        p = first // LANES + c
        for i in range(0, tiles, 4):  # four at a time, so that B is read less often
            s, t, u, v = zero, zero, zero, zero
            for j in range(place, place + count):
                b = load(B, (j - place) * stride + p)
                s, t = fused(spread(A[i, j]), b, s), fused(spread(A[i + 1, j]), b, t)
                u, v = fused(spread(A[i + 2, j]), b, u), fused(spread(A[i + 3, j]), b, v)
            store(C, i * width + c, s)
            store(C, (i + 1) * width + c, t)
            store(C, (i + 2) * width + c, u)
            store(C, (i + 3) * width + c, v)
        for i in range(tiles, C.shape[0]):
            s = zero
            for j in range(place, place + count):
                s = fused(spread(A[i, j]), load(B, (j - place) * stride + p), s)
            store(C, i * width + c, s)


@compiled
def middle(a):
    """The median of `a`, the lower of the middle two of an even number; `a` is reordered. NaN among them may give any."""
    k, left, right = (a.size - 1) // 2, 0, a.size - 1
    while left < right:  # Hoare's FIND: what is below its place, and above, is brought there
        pivot, i, j = a[k], left, right
        while i <= j:
            while a[i] < pivot:
                i += 1
            while pivot < a[j]:
                j -= 1
            if i <= j:
                a[i], a[j] = a[j], a[i]
                i, j = i + 1, j - 1
        left = i if j < k else left
        right = j if k < i else right
    return a[k]
