# pyright: basic, reportIndexIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
"""The kernel for any shape: one learner at a time, vector instructions along the outputs of a layer.

For every example:

    predict -> loss -> gradient and optimizer step, in one pass over the weights -> noise
    -> observe every hidden unit -> count what is due -> replace it

An input of exactly zero costs nothing: its row of weights is neither read nor written. The pass that updates a row also
adds up its |w|, which is what continual backpropagation asks of a unit's outgoing weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from pliant.online.arithmetic import (
    CROSS_ENTROPY,
    RELU,
    activate,
    cached,
    compiled,
    copy,
    count_above,
    count_due,
    divide,
    edition,
    list_active,
    measure,
    multiply,
    normals,
    observe,
    total,
    total_size,
)
from pliant.online.learner import Net, State, adam_entry, aligned, matrix, replace
from pliant.online.vectors import LANES, added, fused, larger, load, size, spread, store

REFRESH = 1000  # steps after which sums of |w| that were kept by adding differences are added up anew


# Rows of a matrix, and the units of a layer, begin at multiples of LANES; the rest of the last vector is zero.


@compiled
def add_rows(W, x, active, count, z):
    """z = bias + x W, from the rows whose input is not zero; four at a time, so that z is read and written less often."""
    width = W.shape[1] // LANES
    for c in range(width):
        store(z, c, load(W, (W.shape[0] - 1) * width + c))
    fours = count - count % 4
    for a in range(0, fours, 4):
        i, j, k, m = active[a], active[a + 1], active[a + 2], active[a + 3]
        xi, xj, xk, xm = spread(x[i]), spread(x[j]), spread(x[k]), spread(x[m])
        for c in range(width):
            sum2 = fused(xj, load(W, j * width + c), fused(xi, load(W, i * width + c), load(z, c)))
            store(z, c, fused(xm, load(W, m * width + c), fused(xk, load(W, k * width + c), sum2)))
    for a in range(fours, count):
        xj = spread(x[active[a]])
        for c in range(width):
            store(z, c, fused(xj, load(W, active[a] * width + c), load(z, c)))


@compiled
def descend_rows(W, x, active, count, delta, step_size, keep, wanted, back, sums):
    """w <- keep w - step_size x delta, by rows; `sums` gets the sum of |new w|, `back`, if `wanted`, old w . delta."""
    width, zero, kept = W.shape[1] // LANES, spread(W.dtype.type(0)), spread(keep)
    for a in range(count):
        j = active[a]
        down, dot, sizes = spread(-step_size * x[j]), zero, zero
        for c in range(width):
            old, d = load(W, j * width + c), load(delta, c)
            new = fused(down, d, kept * old)
            sizes = sizes + size(new)
            if wanted:
                dot = fused(old, d, dot)
            store(W, j * width + c, new)
        sums[j] = added(sizes)
        if wanted:
            back[j] = added(dot)


@compiled
def descend_rows_and_columns(W, x, active, count, delta, step_size, keep, back, sums, columns):
    """The same, keeping the sums of |w| along columns too."""
    width, zero, kept = W.shape[1] // LANES, spread(W.dtype.type(0)), spread(keep)
    for a in range(count):
        j = active[a]
        down, dot, sizes = spread(-step_size * x[j]), zero, zero
        for c in range(width):
            old, d = load(W, j * width + c), load(delta, c)
            new = fused(down, d, kept * old)
            dot, sizes = fused(old, d, dot), sizes + size(new)
            store(columns, c, load(columns, c) + (size(new) - size(old)))
            store(W, j * width + c, new)
        back[j], sums[j] = added(dot), added(sizes)


@compiled
def adam_rows(
    W, M, V, x, delta, weight_decay, beta1, beta2, eps, rate_in, rate_out, scale_in, scale_out, back, sums
):  # fmt: skip
    """Adam's step on every row, and `back` and `sums` as above.

    An entry counts its steps from the younger of its two units: the larger rate and scale. A bias has one unit only.
    """
    width, zero, decay = W.shape[1] // LANES, spread(W.dtype.type(0)), spread(weight_decay)
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
            adam_entry(W, M, V, p, fused(xj, d, decay * old), beta1, beta2, eps, rate, scale)
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


@compiled
def add_up(net, parameters, row_sum, column_sum):
    """Sums of |w| along all rows and columns of a learner, from scratch."""
    row_sum[:] = 0
    column_sum[:] = 0
    for layer in range(net.sizes.size - 1):
        W = matrix(net, parameters, layer)
        add_columns(W, column_sum[net.unit_at[layer + 1] - net.unit_at[1] : net.unit_at[layer + 2] - net.unit_at[1]])
        for j in range(net.sizes[layer]):
            row_sum[net.unit_at[layer] + j] = total_size(W[j])


@compiled
def forward(net, parameters, h, slope, active, count):
    """Activations of every unit from the inputs in `h`; lists in `active` the units of each layer that are not zero."""
    layers = net.sizes.size - 1
    for layer in range(layers):
        begin, middle, end = net.unit_at[layer], net.unit_at[layer + 1], net.unit_at[layer + 2]
        x, rows, units = h[begin : begin + net.sizes[layer]], active[begin:middle], net.sizes[layer + 1]
        # A zero in a hidden layer is skipped only where its slope is zero too, so that nothing flows back through it.
        count[layer] = list_active(x, layer == 0 or net.activation == RELU, rows)
        add_rows(matrix(net, parameters, layer), x, rows, count[layer], h[middle:end])
        if layer + 1 < layers:
            activate(net.activation, h[middle : middle + units], slope[middle : middle + units])


@compiled
def descend(net, parameters, row_sum, column_sum, step_size, weight_decay, h, slope, delta, active, count):
    """Gradient of every layer and SGD step on its rows, last layer first, each weight read and written once."""
    keep = h.dtype.type(1) - step_size * weight_decay
    for layer in range(net.sizes.size - 2, -1, -1):
        begin, middle, end, units = net.unit_at[layer], net.unit_at[layer + 1], net.unit_at[layer + 2], net.sizes[layer]
        W, x, d, back = matrix(net, parameters, layer), h[begin:middle], delta[middle:end], delta[begin : begin + units]
        rows, sums = active[begin:middle], row_sum[begin:middle]
        if weight_decay > 0:  # it reaches the rows of zeros too
            count[layer] = list_active(x[:units], False, rows)
        back[:] = 0
        if net.incoming:
            columns = column_sum[middle - net.unit_at[1] : end - net.unit_at[1]]
            descend_rows_and_columns(W, x, rows, count[layer], d, step_size, keep, back, sums, columns)
        else:
            descend_rows(W, x, rows, count[layer], d, step_size, keep, layer > 0, back, sums)
        for o in range(net.sizes[layer + 1]):
            W[units, o] = keep * W[units, o] - step_size * d[o]
        if layer > 0:
            multiply(back, slope[begin:middle])


@compiled
def adam_rates(beta1, beta2, step_size, power, rate, scale, first):
    """Count one step; step size and scale of Adam's moments for units after so many steps of their own, (all units,)."""
    hidden = power.shape[1] - 1
    for u in range(hidden + 1):
        power[0, u] *= beta1
        power[1, u] *= beta2
    rate[:] = step_size / (1.0 - power[0, hidden])  # inputs and outputs are never reset
    scale[:] = 1.0 / math.sqrt(1.0 - power[1, hidden])
    for u in range(hidden):
        rate[first + u] = step_size / (1.0 - power[0, u])
        scale[first + u] = 1.0 / math.sqrt(1.0 - power[1, u])


@compiled
def adam(net, parameters, moment1, moment2, row_sum, column_sum, weight_decay, h, slope, delta, rate, scale):
    """The same with Adam, whose moments move every weight at every step."""
    for layer in range(net.sizes.size - 2, -1, -1):
        begin, middle, end = net.unit_at[layer], net.unit_at[layer + 1], net.unit_at[layer + 2]
        W, M, V = matrix(net, parameters, layer), matrix(net, moment1, layer), matrix(net, moment2, layer)
        adam_rows(
            W, M, V, h[begin:middle], delta[middle:end], weight_decay, net.beta1, net.beta2, net.eps,
            rate[begin:middle], rate[middle:end], scale[begin:middle], scale[middle:end],
            delta[begin:middle], row_sum[begin:middle],
        )  # fmt: skip
        multiply(delta[begin : begin + net.sizes[layer]], slope[begin:middle])
        if net.incoming:
            columns = column_sum[middle - net.unit_at[1] : end - net.unit_at[1]]
            columns[:] = 0
            add_columns(W, columns)


@compiled
def add_noise(net, parameters, std, key, step):
    """Add std N(0, 1) to every weight and bias of a learner, two to a pair of draws."""
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


@compiled
def observe_rows(net, row_sum, column_sum, h, decay, outgoing, incoming, age, power, mean, utility, score):
    """Observe all hidden layers after the update."""
    for layer in range(net.sizes.size - 2):
        begin, end = net.unit_at[layer + 1], net.unit_at[layer + 1] + net.sizes[layer + 1]
        u, v = begin - net.unit_at[1], end - net.unit_at[1]
        if net.outgoing:
            divide(row_sum[begin:end], net.sizes[layer + 2], outgoing[u:v])
        if net.incoming:
            divide(column_sum[u:v], net.sizes[layer], incoming[u:v])
        observe(
            net.activity, net.outgoing, net.incoming, h[begin:end], decay[u:v], outgoing[u:v], incoming[u:v],
            age[u:v], power[u:v], mean[u:v], utility[u:v], score[u:v],
        )  # fmt: skip


@compiled
def count_rows(net, rate, threshold, keys, age, step, eligible, replaced, due):
    """Count what is due in every hidden layer. True if anything is."""
    some = False
    for layer in range(due.size):
        begin = net.unit_at[layer + 1] - net.unit_at[1]
        mature = count_above(age[begin : begin + net.sizes[layer + 1]], threshold)
        eligible[layer] += mature
        due[layer] = count_due(net.bernoulli, keys[layer], step, rate, mature, eligible[layer], replaced[layer])
        some |= due[layer] > 0
    return some


class RowsWork(NamedTuple):
    """What `learn_rows` writes and nobody else reads."""

    h: Any  # (units,) activations, inputs first
    slope: Any
    delta: Any  # gradient with respect to pre-activations
    rate: Any  # of Adam
    scale: Any
    outgoing: Any  # mean |w|
    incoming: Any
    score: Any
    decay: Any  # decay rate, for each unit
    active: Any  # (units,) which inputs of each layer are not zero
    count: Any  # (layers,) and how many
    due: Any  # (hidden layers,)
    chosen: Any  # (hidden layers, units) for `replace`, like the next
    rank: Any  # (units,)


def rows_work(net: Net, state: State) -> RowsWork:
    """Memory for one call of `learn_rows`."""
    units, hidden, layers = int(net.unit_at[-1]), state.utility.shape[1], len(net.sizes) - 1
    floats = [aligned((units,), state.parameters.dtype) for _ in range(9)]
    whole = [np.zeros(units + 1, np.int64), np.zeros(layers, np.int64), np.zeros(layers - 1, np.int64)]
    return RowsWork(*floats, *whole, np.zeros((layers - 1, hidden), np.int64), np.zeros(hidden))


def _compile_learn_rows(edition: int) -> Callable[..., None]:
    @cached
    def learn_rows(
        net, rules, state, work, learners, stream, X, begin, targets, labels, first_step, loss, correct, sums
    ):
        """Take every learner of `learners` through examples `begin`, ... of its stream, one learner after the other.

        X (streams, examples, inputs) holds those examples alone, all else the whole of them.
        """
        _edition = edition  # enclosed: the cache goes by it
        h, slope, delta, active, count = work.h, work.slope, work.delta, work.active, work.count
        outputs = slice(net.unit_at[-2], net.unit_at[-2] + net.sizes[-1])
        z, dz = h[outputs], delta[outputs]
        for i in range(learners.size):
            r = learners[i]
            s, p, row_sum, column_sum = stream[r], state.parameters[r], state.row_sum[r], state.column_sum[r]
            step_size, weight_decay = rules.step_size[r], rules.weight_decay[r]
            work.decay[:] = rules.decay_rate[r]
            for t in range(begin, begin + X.shape[1] if state.diverged_at[r] < 0 else begin):
                step = first_step + t
                if step % REFRESH == 0:
                    add_up(net, p, row_sum, column_sum)
                copy(h[: net.sizes[0]], X[s, t - begin])
                forward(net, p, h, slope, active, count)
                loss[r, t], hit = measure(net.loss, z, targets[s, t], labels[s, t], dz)
                if net.loss == CROSS_ENTROPY:
                    correct[r, t] = hit
                if not np.isfinite(loss[r, t]):
                    state.diverged_at[r] = step
                    break
                if net.adam:
                    adam_rates(
                        net.beta1, net.beta2, step_size, state.beta_power[r], work.rate, work.scale, net.unit_at[1]
                    )
                    adam(
                        net, p, state.moment1[r], state.moment2[r], row_sum, column_sum, weight_decay,
                        h, slope, delta, work.rate, work.scale,
                    )  # fmt: skip
                else:
                    descend(net, p, row_sum, column_sum, step_size, weight_decay, h, slope, delta, active, count)
                if rules.noise_std[r] > 0:
                    add_noise(net, p, rules.noise_std[r], rules.noise_key[r], step)
                    add_up(net, p, row_sum, column_sum)
                if rules.replacement_rate[r] > 0:
                    observe_rows(
                        net, row_sum, column_sum, h, work.decay, work.outgoing, work.incoming,
                        state.age[r], state.decay_power[r], state.mean[r], state.utility[r], work.score,
                    )  # fmt: skip
                    if count_rows(
                        net, rules.replacement_rate[r], rules.maturity_threshold[r], rules.count_key[r], state.age[r], step,
                        state.eligible[r], state.replaced[r], work.due,
                    ):  # fmt: skip
                        replace(net, rules, state, r, step, work.due, work.chosen, work.rank)
                        if not np.isfinite(total(row_sum) + total(column_sum)):
                            add_up(net, p, row_sum, column_sum)
                for layer in range(sums.shape[2] if sums.shape[1] else 0):
                    sums[r, t, layer] = total(row_sum[net.unit_at[layer] : net.unit_at[layer + 1]])

    return learn_rows


learn_rows = _compile_learn_rows(edition())
