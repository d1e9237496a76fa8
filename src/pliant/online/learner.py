# pyright: basic, reportIndexIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
"""The kernels' data structures for learners, and the replacement of their units.

A weight matrix is stored [input][output] with the bias as its last row, so that the weights of one input are
contiguous. All matrices of a learner lie one after the other in one row of `LearnerState.parameters`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pliant.online.arithmetic import ADAM, RANDOM, UPGD, uniform
from pliant.online.compiling import compiled, inlined
from pliant.online.norms import NONE, forget_norm
from pliant.online.vectors import load, matrix_view, root, spread, store


class Net(NamedTuple):
    """Shape and settings that all learners share. Layer l has sizes[l] inputs and sizes[l + 1] outputs."""

    sizes: Any  # (layers + 1,)
    weight_at: Any  # (layers + 1,) where each matrix begins in a row of parameters, and where the last one ends
    unit_at: Any  # (layers + 2,) where the units of each size begin, inputs first; for `rows` at multiples of LANES,
    # and so do the rows of a matrix: what lies between is zero
    pairs: int  # of normal numbers that disturb all weights once
    activation: int
    loss: int
    optimizer: int
    decoupled: bool  # whether weight decay shrinks weights by itself instead of joining the gradient
    beta1: Any  # of Adam, like the next two
    beta2: Any
    eps: Any
    beta_utility: Any  # of UPGD
    activity: int  # the utility: which activity, times outgoing, over incoming weight size
    outgoing: bool
    incoming: bool
    bernoulli: bool
    hand_over: bool
    bound: Any  # (hidden layers,) of fresh incoming weights, float64
    normalization: int
    decay_forward: Any  # of online normalization
    decay_backward: Any


class Rules(NamedTuple):
    """Hyperparameters, one value per learner."""

    step_size: Any
    weight_decay: Any
    noise_std: Any
    l2_init: Any
    weight_clipping: Any  # κ; 0 clips nothing
    sigma: Any  # of UPGD
    kappa: Any  # of ObGD
    dropout: Any  # float64
    replacement_rate: Any  # float64; 0 is not observed
    maturity_threshold: Any
    decay_rate: Any
    candidates: Any  # int64; 0: fresh units are plain
    noise_key: Any  # (learners,), like the next
    dropout_key: Any
    fresh_key: Any  # (learners, hidden layers), like the next two
    count_key: Any
    score_key: Any
    initial: Any  # (learners, parameters) at the start; (learners, 0) without L2 Init


class LearnerState(NamedTuple):
    """Everything that learning changes; the first axis is the learner, hidden units lie layer after layer."""

    parameters: Any  # (learners, parameters)
    shrunk: Any  # (learners,) float64: a weight is `shrunk` times what is stored, a bias is what is stored
    settled: Any  # (learners, rows) the step up to which a row has its noise; (learners, 0) without noise
    affine: Any  # (learners, 2, units) scale and shift of each unit; (learners, 2, 0) without normalization
    affine_moment1: Any  # the same with Adam, else (learners, 2, 0)
    affine_moment2: Any
    statistics: Any  # (learners, 4, units) of online normalization, else (learners, 4, 0)
    moment1: Any  # (learners, parameters) with Adam, and UPGD, whose utilities it holds; else (learners, 0)
    moment2: Any  # the same with Adam
    beta_power: (
        Any  # (learners, 2, units + 1) beta^steps since the unit was reset; last: since the start (UPGD: that alone)
    )
    utility: Any  # (learners, units)
    mean: Any
    decay_power: Any  # decay_rate^age
    age: Any
    row_sum: Any  # (learners, inputs + units) sums of |stored weight| that leave each input and unit
    column_sum: Any  # (learners, units + outputs) that enter each unit; kept if `incoming`
    eligible: Any  # (learners, hidden layers) mature units, added up over steps
    replaced: Any  # (learners, hidden layers)
    diverged_at: Any  # (learners,) first step whose loss is not finite, or -1
    # (learners, EXAMPLES, all inputs of hidden layers) of `pliant.online.candidates`; else (learners, 0, 0)
    past_inputs: Any
    past_deltas: Any  # the same, of the layers that hidden units feed: from the second hidden layer to the outputs


def aligned(shape: tuple[int, ...], dtype: Any) -> Any:
    """Zeros that begin on a cache line, so that no vector in them lies across two."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + 64, np.uint8)
    begin = -raw.ctypes.data % 64
    return raw[begin : begin + size].view(dtype).reshape(shape)


@inlined
def matrix(net, parameters, layer):
    """The weights of a layer, [input][output], the bias as last row: a view into a learner's flat parameters."""
    return matrix_view(parameters, place_of(net, layer))


@compiled
def place_of(net, layer):
    """Where the weights of a layer begin in flat parameters, their rows, the bias included, and columns."""
    return net.weight_at[layer], net.sizes[layer] + 1, net.unit_at[layer + 2] - net.unit_at[layer + 1]


@compiled
def adam_entry(w, m, v, p, old, g, beta1, beta2, eps, rate, scale):
    """Adam's step from `old` on row `p` of the parameters."""
    one = w.dtype.type(1)
    first = spread(beta1) * load(m, p) + spread(one - beta1) * g
    second = spread(beta2) * load(v, p) + spread(one - beta2) * (g * g)
    store(m, p, first)
    store(v, p, second)
    store(w, p, old - rate * first / (root(second) * scale + spread(eps)))


@compiled
def least_useful(net, rules, state, r, layer, step, due, chosen, score):
    """Write the `due` mature units of lowest utility into `chosen`, lowest first; NaN is lowest, ties go to the lowest index."""
    begin, units = net.unit_at[layer + 1] - net.unit_at[1], net.sizes[layer + 1]
    for i in range(units):
        score[i] = state.utility[r, begin + i] / (1.0 - state.decay_power[r, begin + i])
        if net.activity == RANDOM:
            score[i] = uniform(rules.score_key[r, layer], step * units + i)
    for k in range(due):
        best = -1
        for i in range(units):
            if state.age[r, begin + i] > rules.maturity_threshold[r] and not among(i, chosen, k):
                best = i if best < 0 or below(score[i], score[best]) else best
        chosen[k] = best


@compiled
def below(a, b):
    """a < b, where NaN is below every number."""
    return a < b or (np.isnan(a) and not np.isnan(b))


@compiled
def among(i, chosen, count):
    found = False
    for k in range(count):
        found |= chosen[k] == i
    return found


@compiled
def hand_over_mean(net, state, r, layer, i):
    """Add a unit's mean contribution to the biases of the next layer; contributions that are not finite are dropped."""
    u = net.unit_at[layer + 1] - net.unit_at[1] + i
    V = matrix(net, state.parameters[r], layer + 1)
    mean = V.dtype.type(state.shrunk[r]) * (state.mean[r, u] / (V.dtype.type(1) - state.decay_power[r, u]))
    for k in range(net.sizes[layer + 2]):
        if np.isfinite(V[i, k] * mean):
            V[V.shape[0] - 1, k] += V[i, k] * mean


@compiled
def redraw(net, rules, state, r, layer, i, draw, bias):
    """Incoming weights of draw number `draw`, a norm's scale of one and shift of zero; sums of |w| follow."""
    W, inputs = matrix(net, state.parameters[r], layer), net.sizes[layer]
    row_sum, first, total = state.row_sum[r, net.unit_at[layer] :], draw * inputs, W.dtype.type(0)
    for j in range(inputs):
        before = abs(W[j, i])
        W[j, i] = (2.0 * uniform(rules.fresh_key[r, layer], first + j) - 1.0) * net.bound[layer] / state.shrunk[r]
        row_sum[j] += abs(W[j, i]) - before
        total += abs(W[j, i])
    W[inputs, i] = bias
    if net.normalization != NONE:
        forget_norm(state.affine[r], state.statistics[r], net.unit_at[layer + 1] - net.unit_at[1] + i)
    state.column_sum[r, net.unit_at[layer + 1] - net.unit_at[1] + i] = total
    state.replaced[r, layer] += 1


@compiled
def zero_outgoing(net, state, r, layer, i):
    """Zero a unit's outgoing weights, and update the sums of |w|."""
    V = matrix(net, state.parameters[r], layer + 1)
    column_sum = state.column_sum[r, net.unit_at[layer + 2] - net.unit_at[1] :]
    for k in range(V.shape[1]):
        column_sum[k] -= abs(V[i, k])
        V[i, k] = 0
    state.row_sum[r, net.unit_at[layer + 1] + i] = 0


@compiled
def forget_entries(net, moment, layer, i):
    """Zero what the optimizer remembers about a unit's incoming weights, bias and outgoing weights."""
    matrix(net, moment, layer)[:, i] = 0
    matrix(net, moment, layer + 1)[i, :] = 0


@compiled
def forget(net, state, r, layer, i):
    """Clear a unit's optimizer state and running averages."""
    u = net.unit_at[layer + 1] - net.unit_at[1] + i
    state.utility[r, u] = state.mean[r, u] = state.age[r, u] = 0
    state.decay_power[r, u] = 1
    state.beta_power[r, :, u] = 1
    if net.optimizer == ADAM or net.optimizer == UPGD:
        forget_entries(net, state.moment1[r], layer, i)
    if net.optimizer == ADAM:
        forget_entries(net, state.moment2[r], layer, i)
        if net.normalization != NONE:
            state.affine_moment1[r, :, u] = 0
            state.affine_moment2[r, :, u] = 0


@compiled
def replace(net, rules, state, r, step, due, chosen, score):
    """Replace the `due[layer]` least useful units of every layer by plain ones: each phase in all layers before the next."""
    choose_and_hand_over(net, rules, state, r, step, due, chosen, score)
    for layer in range(due.size):
        for k in range(due[layer]):
            redraw(
                net, rules, state, r, layer, chosen[layer, k], state.replaced[r, layer], state.parameters.dtype.type(0)
            )
    zero_and_forget(net, state, r, due, chosen)


@compiled
def choose_and_hand_over(net, rules, state, r, step, due, chosen, score):
    """What comes before the redraw: `chosen` gets the `due[layer]` least useful units of every layer."""
    for layer in range(due.size):
        least_useful(net, rules, state, r, layer, step, due[layer], chosen[layer], score)
    if net.hand_over:
        for layer in range(due.size):
            for k in range(due[layer]):
                hand_over_mean(net, state, r, layer, chosen[layer, k])


@compiled
def zero_and_forget(net, state, r, due, chosen):
    """What comes after it."""
    for layer in range(due.size):
        for k in range(due[layer]):
            zero_outgoing(net, state, r, layer, chosen[layer, k])
            forget(net, state, r, layer, chosen[layer, k])
