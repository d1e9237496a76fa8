# pyright: basic, reportIndexIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false
"""The best of N fresh units, each with the bias at which it is on for half of the last examples.

    w_n  the draws of `pliant.online.fresh`, n = 1 ... N                 x  inputs of the unit's layer
    b_n = -median(w_n' x)                                               a = phi(w_n' x + b_n), phi the layer's activation
    n   = argmax  norm(mean(δ a)) / std(a)                              δ  gradient of an example's loss with respect to the
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

from pliant.online.arithmetic import RELU, activate, copy, list_active, total, uniform
from pliant.online.compiling import apart, compiled, on_demand
from pliant.online.learner import redraw
from pliant.online.passes import add_rows
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
    products(net, rules, state, work, r, layer, first, examples)
    begin, end = net.unit_at[layer + 2] - net.unit_at[2], net.unit_at[layer + 3] - net.unit_at[2]
    zero, draws = work.h.dtype.type(0), rules.candidates[r]
    a, slope, width = work.of_draw[:examples], work.slope_of_draw[:examples], work.products.size // EXAMPLES
    best, highest, bias = 0, -1.0, zero
    for n in range(draws):
        for e in range(examples):
            a[e] = slope[e] = work.products[e * width + n]
        own = -middle(slope)
        for e in range(examples):
            a[e] += own
        activate(net.activation, a, slope)
        score = score_of(a, state.past_deltas[r], begin, work.feeding[: end - begin])
        if score > highest:
            best, highest, bias = n, score, own
    return best, bias


@compiled
def products(net, rules, state, work, r, layer, first, examples):
    """w' x of every draw at every example, (examples, draws padded), flat, into `work.products`."""
    inputs, key, begin = net.sizes[layer], rules.fresh_key[r, layer], net.unit_at[layer]
    width, one, active = work.products.size // EXAMPLES, work.h.dtype.type(1), work.active_inputs
    W = matrix_view(work.draws, (0, inputs + 1, width))  # the last row is the bias
    work.draws[: (inputs + 1) * width] = 0
    for n in range(rules.candidates[r]):
        for j in range(inputs):
            W[j, n] = (2.0 * uniform(key, (first + n) * inputs + j) - 1.0) * net.bound[layer]
    for e in range(examples):
        x = state.past_inputs[r, e, begin : begin + inputs]
        count = list_active(x, layer == 0 or net.activation == RELU, active)
        add_rows(W, x, active, count, one, work.products[e * width : (e + 1) * width])


@compiled
def score_of(a, deltas, begin, feeding):
    """norm(mean(δ a)) / std(a) of activity a, (examples,), or -1 where it loses; `feeding` is scratch memory.

    `deltas` (examples or more, places), of which δ are those from place `begin` on, as many as `feeding` has.
    """
    level, squares, norm = total(a) / a.dtype.type(a.size), 0.0, 0.0
    for e in range(a.size):
        squares += np.float64(a[e] - level) * np.float64(a[e] - level)
    add_weighted(deltas, begin, a, feeding)
    for k in range(feeding.size):
        norm += np.float64(feeding[k]) * np.float64(feeding[k])
    if not squares > 0:
        return -1.0
    score = math.sqrt(norm / a.size / squares)
    return score if np.isfinite(score) else -1.0


@apart
def add_weighted(rows, begin, a, sums):
    """sums = Σ a[e] rows[e, begin : begin + sums.size], all of them whole vectors."""
    width, first = rows.shape[1] // LANES, begin // LANES
    for c in range(sums.size // LANES):
        result = spread(a.dtype.type(0))
        for e in range(a.size):
            result = fused(spread(a[e]), load(rows, e * width + first + c), result)
        store(sums, c, result)


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
